"""Masks that exchange a few entries during the run: dynamic sparse training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from hetfl.arguments import choice
from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.parts.base import AskingProbe
from hetfl.parts.candidates import CandidateLoss, candidate
from hetfl.parts.growth import ByServer, Exchange, Growth
from hetfl.parts.mask_rule import MaskRule, copies_of
from hetfl.pruning.criteria import Criterion, RandomScore
from hetfl.pruning.densities import Masks, Scope
from hetfl.pruning.schedules import exchanged
from hetfl.types import Report
from hetfl.updates import Update


class DynamicMask(MaskRule):
    r"""One mask of constant density for all clients, which exchanges entries every ``every`` rounds.

    In round t, :math:`k_l = \lfloor \frac{\alpha}{2} (1 + \cos(\pi t / T)) n_l \rfloor` of the :math:`n_l` held entries
    of weight l are exchanged. ``grow`` decides which are dropped and which begin from zero. Unless clients
    have masks of their own, all entries of the global model outside of the mask are zero.

    Args:
        grow: decides about the exchange; None: :class:`~hetfl.parts.growth.ByServer`.
        scope: densities of the weights: ``erk``, ``layer``, or ``global``, for which the first scores decide.
        first: criterion of the first mask; None: random entries.
        share: :math:`\alpha`, the share of held entries that is exchanged at first.
        every: rounds between two exchanges.
        until: round T from which on the mask stays; None: the last round of the run.
        anneal: whether the share falls; if not, :math:`k_l = \lfloor \alpha n_l \rfloor` before T.
        candidates: number of first masks with different densities of the weights. The first cohort computes the loss
            of each on its data, and the one with the smallest mean begins, as FedTiny chooses its coarse mask (Huang,
            Zhang, Zheng, Guo, Ding, Wen, Li: Distributed Pruning Towards Tiny Neural Networks in Federated Learning,
            ICDCS 2023); there norm statistics are means over the clients, here those of each client's batches.

    Raises:
        ConfigurationError: a setting is unknown or out of its range.
    """

    _needs_whole_levels: ClassVar[bool] = True

    def __init__(
        self,
        grow: Growth | None = None,
        scope: Scope = "erk",
        first: Criterion | None = None,
        share: float = 0.2,
        every: int = 10,
        until: int | None = None,
        anneal: bool = True,
        candidates: int = 1,
    ) -> None:
        if not 0.0 < share < 1.0 or every < 1 or (until is not None and until < 1) or candidates < 1:
            raise ConfigurationError(
                "Expected share in (0, 1), and every, until and candidates of at least 1 but got "
                f"{share}, {every}, {until}, {candidates}"
            )
        self.candidates, self.asks_clients, self._first_chosen = candidates, candidates > 1, candidates == 1
        if first is not None and (first.of_norms or first.needs_rounds):
            raise ConfigurationError(
                f"Expected a first criterion of initial weights, for every entry, but got {first.describe()}"
            )
        self.grow, self.scope, self.first = grow or ByServer(), choice("scope", scope, Scope), first or RandomScore()
        self._scope = self.scope
        self.share, self.every, self.until, self.anneal = share, every, until, anneal
        self.asks_gradients, self.personal = self.grow.asks_gradients, self.grow.personal
        self.follows_clients, self.open_ended = self.grow.follows_clients, until is not None
        self._exchange: Exchange | None = None  # of the present round

    def first_masks(self) -> dict[float, dict[str, Tensor]]:  # noqa: D102
        return {self.sparse[0]: self._candidate(0)}

    def _candidate(self, number: int) -> dict[str, Tensor]:
        scores = self.first.scores(self.evidence(seed=self.random_seed(-1)))
        return dict(candidate(scores, self.scope, self.sparse[0], number, self.random_seed(-1)))

    def begin(self) -> None:
        """Set the entries outside of the common mask to zero, if it was chosen."""
        if self._first_chosen:
            self._erase()

    def _erase(self) -> None:
        if not self.personal:
            self.clear_pruned()

    def counts(self, round: int) -> dict[str, int]:
        """Return how many entries of each weight are exchanged at the end of a round."""
        until = self.rounds if self.until is None else self.until
        if (round + 1) % self.every or round >= until:
            return dict.fromkeys(self.mask, 0)
        active = {name: int(mask.count_nonzero()) for name, mask in self.mask.items()}
        counts = {n: exchanged(k, round, self.share, until if self.anneal else None) for n, k in active.items()}
        return {name: min(count, self.mask[name].numel() - active[name]) for name, count in counts.items()}

    def consult(self, round: int, cohort: Sequence[int], probe: AskingProbe) -> None:
        """Let the first cohort choose a mask, and the growth ask the cohort, if entries are exchanged in the round."""
        if not self._first_chosen:
            self._choose([client for client in cohort if self.levels[probe.level(client)].density < 1.0], probe)
        counts = self.counts(round)
        self._exchange = None
        if any(counts.values()):
            exchange = Exchange(
                round, self.random_seed(round), self.mask, counts, lambda: self.weights, lambda: copies_of(self.models)
            )
            self.grow.consult(exchange, cohort, probe)
            self._exchange = exchange

    def _choose(self, clients: Sequence[int], probe: AskingProbe) -> None:
        """Begin with the candidate of the smallest mean loss; of equal ones with the first."""
        losses = {}
        for number in range(self.candidates):
            self.hold({self.sparse[0]: self._candidate(number)})
            if answers := [float(each) for each in probe.answers(clients, CandidateLoss(number)).values()]:
                losses[number] = sum(answers) / len(answers)
        self.hold({self.sparse[0]: self._candidate(min(losses, key=losses.__getitem__, default=0))})
        self._first_chosen = bool(losses)

    def of_client(self, client: int, density: float) -> Masks | None:  # noqa: D102
        return self.grow.of_client(client)

    def observe(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        if self._exchange is not None:
            self.grow.observe(self._exchange, update, index, report)

    def end_round(self, round: int) -> None:  # noqa: D102
        if self._exchange is not None:
            self.hold({self.sparse[0]: self.grow.chosen(self._exchange)})
            self._exchange = None
        self._erase()

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {**super().state_dict(), "grow": self.grow.state_dict(), "first_chosen": self._first_chosen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(dict(state))
        self.grow.load_state_dict(state["grow"], self.shapes)
        self._first_chosen = state["first_chosen"]
