"""Multi-Krum: the mean of the updates whose nearest others are near, on the core that all clients hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetfl.aggregators.clipping import Length, clip_factors
from hetfl.aggregators.robust import RobustAggregator, Step, norm_of
from hetfl.aggregators.stacks import stacks
from hetfl.aggregators.waiting import Waiting
from hetfl.aggregators.weighted import GivenMean
from hetfl.errors import ConfigurationError
from hetfl.submodel import take
from hetfl.updates import SparseUpdate, Update


class MultiKrum(RobustAggregator):
    r"""The mean of the m updates with the best scores; a score sums the distances to the nearest other updates.

    .. math:: s_k = \sum_{i \in N_k} \lVert u_k - u_i \rVert_C^2, \qquad |N_k| = n - f - 2

    with :math:`N_k` the updates nearest to :math:`u_k`, n the updates of the round, f = ⌈share · n⌉ the number of
    hostile ones, at most (n − 3) / 2, and C the *core*: the parameters that all of the round's clients hold. The
    m = n − f updates with the least scores are averaged over the holders of each entry. Entries outside of the core are
    in no distance. So that an attack on them stays small, this part of an update, its *shell*, is clipped to the usual
    norm of its level, as in :class:`ClippedMean`. An entry whose holders are all left out keeps its value.

    Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries, NeurIPS 2017, section 4, for clients
    that hold all entries: then the core is everything, and nothing is clipped.

    Args:
        share: the share of hostile clients that is expected, in [0, 0.5).
        most_bytes: bytes of waiting updates in memory; further ones are in files. None: no limit.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    def __init__(self, share: float = 0.2, most_bytes: int | None = None) -> None:
        super().__init__(most_bytes)
        if not 0.0 <= share < 0.5:
            raise ConfigurationError(f"Expected share in [0, 0.5) for MultiKrum but got {share}")
        self.share = share
        self._mean = GivenMean()

    def hostile(self, updates: int) -> int:
        """Return f for n updates.

        >>> [MultiKrum(0.2).hostile(updates) for updates in (2, 4, 5, 10, 11)]
        [0, 0, 1, 2, 3]
        """
        return max(0, min(math.ceil(round(self.share * updates, 9)), (updates - 3) // 2))

    def combine(self, tensors: Mapping[str, Tensor], waiting: Sequence[Waiting]) -> Step:
        """Return the step and the holders of every tensor.

        Raises:
            ConfigurationError: the round's clients have no entry in common.
        """
        if not waiting:
            return self._mean.of(tensors, ())
        core, distances_SS = self._core(tensors, waiting)
        shells = [_shells(each, core) for each in waiting]
        factors = [clip_factors([of_block.length for of_block in block]) for block in zip(*shells, strict=True)]

        def changed(k: int) -> Update:
            vector, exact = (shell.scaled(factor[k]) for shell, factor in zip(shells[k], factors, strict=True))
            return waiting[k].update.with_values(vector).with_exact(exact)

        chosen = sorted(self.chosen(distances_SS))
        return self._mean.of(tensors, ((changed(k), waiting[k].part, waiting[k].report, 1.0) for k in chosen))

    def chosen(self, distances_SS: Tensor) -> list[int]:
        """Return the numbers of the updates with the least scores; of equal ones the first.

        Args:
            distances_SS: squared distances of n updates.
        """
        count = len(distances_SS)
        hostile = self.hostile(count)
        others_SS = distances_SS.clone().fill_diagonal_(math.inf).sort(dim=1).values
        near = others_SS[:, : max(0, min(count - 1, count - hostile - 2))]
        return near.sum(1).argsort(stable=True)[: count - hostile].tolist()

    def _core(self, tensors: Mapping[str, Tensor], waiting: Sequence[Waiting]) -> tuple[dict[str, Tensor], Tensor]:
        """Return by name which entries all clients hold, and the squared distances on those of parameters."""
        core = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in tensors.items()}
        products_SS = torch.zeros(len(waiting), len(waiting), dtype=torch.float64)
        found = False
        for stack in stacks(waiting, tensors):
            if len(stack.holders) < len(waiting):
                continue
            width = stack.values_SW.shape[1]
            counts_W = torch.full((width,), len(waiting)) if stack.counts_W is None else stack.counts_W.cpu()
            for place in stack.places:
                place.put(core, counts_W == len(waiting))
            if not stack.exact:
                values_SW = stack.values_SW[:, (counts_W == len(waiting)).to(stack.values_SW.device)].double().cpu()
                products_SS += values_SW @ values_SW.T
                found = found or bool(values_SW.shape[1])
        if not found:
            raise ConfigurationError("Expected parameters that all clients of a round hold for MultiKrum but got none")
        squares_S = products_SS.diagonal()
        return core, (squares_S[:, None] + squares_S[None] - 2 * products_SS).clamp(min=0)


@dataclass(frozen=True)
class _Shell:
    """The values of an update or of its exact block, with those outside of the core."""

    values: Tensor
    outside: Tensor
    length: Length

    def scaled(self, factor: float) -> Tensor:
        """Return the values, with those outside of the core multiplied by a factor."""
        return self.values if factor == 1.0 else torch.where(self.outside, self.values * factor, self.values)


def _shells(waiting: Waiting, core: Mapping[str, Tensor]) -> tuple[_Shell, _Shell]:
    """Return the shells of an update's vector and of its exact block."""
    part, update = waiting.part, waiting.update
    held = ~part.packed(torch.cat([take(core[name], entry).flatten() for name, entry in part.items()]))
    vector, exact = held.split([update.size, len(held) - update.size])
    sent = vector[update.indices.cpu()] if isinstance(update, SparseUpdate) else vector

    def shell(values: Tensor, outside: Tensor, held: Tensor) -> _Shell:
        outside = outside.to(values.device)
        return _Shell(values, outside, Length(waiting.report.level, norm_of(values[outside]), int(held.sum())))

    return shell(update.values, sent, vector), shell(update.exact, exact, exact)
