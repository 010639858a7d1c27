"""PruneFL: the mask that promises the largest decrease of the loss per second."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hetfl.arguments import choice
from hetfl.errors import ConfigurationError
from hetfl.fleet import Device
from hetfl.parts.mask_rule import MaskRule
from hetfl.pruning.criteria import Magnitude
from hetfl.pruning.densities import Scope, best, density_of, largest
from hetfl.pruning.gradients import GradientRequest
from hetfl.pruning.greedy import fastest_descent


class GreedyMask(MaskRule):
    r"""One mask for all clients that maximises the squared gradients per second, and so chooses its own density.

    At the end of every ``every``-th round the set A of held entries is the one that maximises

    .. math:: \Gamma(A) = \frac{\sum_{j \in A} g_j^2}{c + \sum_{j \in A} t_j},

    with :math:`g_j^2` the mean of the clients' squared gradients at the start of the round, :math:`t_j` the seconds
    that an entry costs (:meth:`MaskRule.seconds`) and c fixed seconds. Held entries stay, but for a share p of each
    weight's, those of the smallest absolute value: they compete with the entries that are not held.
    :math:`p = 0.3 \cdot 0.5^{t / \text{half-life}}` in round t. The density of the level is that of the first mask.

    Jiang, Wang, Valls, Ko, Lee, Leung, Tassiulas: Model Pruning Enables Efficient Federated Learning on Edge Devices,
    IEEE TNNLS 2022 (arXiv 1909.12326). As in the paper: the objective, the greedy choice, the share of candidates. Not
    as in the paper: there is no first stage on one client; gradients are those of one round's start, not sums over the
    rounds since the last change; seconds follow from the device's settings, not from measurements.

    Args:
        every: rounds between two choices.
        fixed_seconds: c.
        candidates: share of the held entries of each weight that may be dropped at first.
        half_life: rounds after which this share is halved.
        device: throughput and links, for seconds; None: the default device.
        scope: of the first mask.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    def __init__(
        self,
        every: int = 50,
        fixed_seconds: float = 1.0,
        candidates: float = 0.3,
        half_life: float = 10_000.0,
        device: Device | None = None,
        scope: Scope = "layer",
    ) -> None:
        if every < 1 or fixed_seconds <= 0 or not 0.0 <= candidates <= 1.0 or half_life <= 0:
            raise ConfigurationError(
                "Expected every of at least 1, fixed_seconds and half_life above 0, and candidates in [0, 1] but got "
                f"{every}, {fixed_seconds}, {half_life}, {candidates}"
            )
        self.every, self.scope, self.asks_gradients = every, choice("scope", scope, Scope), True
        self._scope = self.scope
        self.fixed_seconds, self.candidates, self.half_life = fixed_seconds, candidates, half_life
        self.device = device or Device()

    def first_masks(self) -> dict[float, dict[str, Tensor]]:  # noqa: D102
        density = self.sparse[0]
        return {density: best(Magnitude().scores(self.evidence()), self.scope, density)}

    def begin(self) -> None:
        """Set the entries outside of the mask to zero."""
        self.clear_pruned()

    def request(self, round: int) -> GradientRequest | None:
        """Return a request for the gradients of all entries, if a choice is due."""
        return None if (round + 1) % self.every else GradientRequest()

    def end_round(self, round: int) -> None:  # noqa: D102
        if self.asked is not None and self.asked.samples:
            self.hold({self.sparse[0]: self._chosen(self.asked.squares, round + 1)})
        self.clear_pruned()

    def _chosen(self, scores: Mapping[str, Tensor], round: int) -> dict[str, Tensor]:
        """Return the mask of the largest decrease of the loss per second."""
        share = self.candidates * 0.5 ** (round / self.half_life)
        before, seconds = self.mask, self.seconds()
        kept = {name: self._kept(name, mask, share) for name, mask in before.items()}
        free = {name: ~mask.flatten() for name, mask in kept.items()}
        held_score = sum(float(scores[name].flatten()[~free[name].to(scores[name].device)].sum()) for name in kept)
        held_seconds = sum(seconds[name] * int(mask.count_nonzero()) for name, mask in kept.items())
        chosen, _ = fastest_descent(
            torch.cat([scores[name].flatten().cpu()[free[name]] for name in kept]),
            torch.cat([torch.full((int(free[name].count_nonzero()),), seconds[name]) for name in kept]),
            held_score,
            self.fixed_seconds + held_seconds,
        )
        grown = chosen.split([int(each.count_nonzero()) for each in free.values()])
        masks = {n: kept[n].flatten().masked_scatter(free[n], each) for n, each in zip(kept, grown, strict=True)}
        return {name: mask.view(kept[name].shape) for name, mask in masks.items()}

    def _kept(self, name: str, mask: Tensor, share: float) -> Tensor:
        """Return the held entries of a weight that stay in any case, at least one."""
        count = int(mask.count_nonzero())
        sizes = self.weights[name].abs().cpu().masked_fill(~mask, -1.0)
        return largest(sizes, max(1, count - int(share * count)))

    def columns(self) -> dict[str, float]:
        """Return the density of the mask over all weights."""
        return {"parts/density": density_of(self.mask)}
