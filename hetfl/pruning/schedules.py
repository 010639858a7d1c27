"""How the density of masks, and the number of exchanged entries, change over the rounds."""

from __future__ import annotations

import math

from hetfl.errors import ConfigurationError
from hetfl.piece import described, settings_of


class DensitySchedule:
    """The density of a level over the rounds; this one is constant."""

    open_ended: bool = True
    """Whether it works in a run without a last round."""

    def density(self, final: float, round: int, rounds: int) -> float:
        """Return the density in a round.

        Args:
            final: the density of the level.
            round: the round, from 0.
            rounds: number of rounds of the run.
        """
        return final

    def describe(self) -> str:
        """Return the schedule and its settings as short text."""
        return described(type(self).__name__, settings_of(self))


class Cubic(DensitySchedule):
    r"""The sparsity rises from 0 to that of the level, fast at first.

    .. math:: s_t = s_T + (s_0 - s_T) \left(1 - \frac{f \lfloor t / f \rfloor - t_0}{T - t_0}\right)^3

    with :math:`s = 1 -` density. Before :math:`t_0` it is :math:`s_0`, from T on :math:`s_T`.

    Stripelis, Gupta, Ver Steeg, Ambite: Federated Progressive Sparsification (Purge, Merge, Tune)+, 2022 (arXiv
    2204.12430); Zhu, Gupta: To prune, or not to prune, 2017 (arXiv 1710.01878).

    Args:
        initial: density :math:`1 - s_0` at first.
        begin: round :math:`t_0`.
        until: round T; None: the last round of the run.
        every: rounds f between two steps.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    def __init__(self, initial: float = 1.0, begin: int = 1, until: int | None = None, every: int = 1) -> None:
        if not 0.0 < initial <= 1.0:
            raise ConfigurationError(f"Expected initial in (0, 1] but got {initial}")
        if begin < 0 or every < 1 or (until is not None and until <= begin):
            raise ConfigurationError(
                f"Expected 0 <= begin < until and every of at least 1 but got {begin}, {until}, {every}"
            )
        self.initial, self.begin, self.until, self.every = initial, begin, until, every
        self.open_ended = until is not None

    def density(self, final: float, round: int, rounds: int) -> float:  # noqa: D102
        until = rounds if self.until is None else self.until
        at = self.every * (round // self.every)
        if at < self.begin:
            return self.initial
        if round >= until:
            return final
        return final + (self.initial - final) * (1.0 - (at - self.begin) / (until - self.begin)) ** 3


def exchanged(active: int, round: int, share: float, until: int | None) -> int:
    r"""Return how many entries are exchanged: :math:`\lfloor \frac{\alpha}{2} (1 + \cos(\pi t / T)) n \rfloor`.

    Evci, Gale, Menick, Castro, Elsen: Rigging the Lottery: Making All Tickets Winners, ICML 2020, section 3.

    Args:
        active: number n of held entries.
        round: the round t.
        share: :math:`\alpha`.
        until: the round T from which on nothing is exchanged; None: the share does not fall.
    """
    if until is None:
        return math.floor(share * active)
    return 0 if round >= until else math.floor(share / 2 * (1 + math.cos(math.pi * round / until)) * active)
