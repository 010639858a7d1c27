"""The mean of clients' low-rank products, merged into the weights beside them (FLoRA)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from hetfl.aggregators.holder_mean import HolderMean
from hetfl.aggregators.levels_of_factors import check_one_scale, check_trained_a, widened
from hetfl.aggregators.zero_pad_mean import trained_values
from hetfl.errors import ConfigurationError
from hetfl.factors import matrices, pairs_of
from hetfl.layout import Index
from hetfl.part import part_of
from hetfl.piece import Facts
from hetfl.seeding import generator
from hetfl.types import Report
from hetfl.updates import Update


class Target(NamedTuple):
    """The weight that a layer's products are merged into.

    Attributes:
        weight: its name.
        scale: the factor s of the products.
        transposed: whether the weight is (in, out).
    """

    weight: str
    scale: float
    transposed: bool = False


class StackedProducts(HolderMean):
    r"""Merges the mean of the clients' products into the frozen weights, and begins new factors (FLoRA).

    .. math:: W \leftarrow W + s \sum_k p_k B_k A_k, \qquad p_k = n_k / \sum_i n_i

    A becomes a new draw and B becomes 0 in every layer. All other trained tensors get the mean over their holders,
    weighted by samples. A client of a narrower level has zeros in place of inputs and outputs that it does not hold.
    :meth:`shared_bytes` are those of the stacked factors that a client has not been sent. The server takes its own
    factors for those that clients began with: schedules in which clients begin with older models are refused, and with
    a lossy ``downlink`` the mean is not exact.

    Args:
        targets: by name of an adapted layer, its weight.
    """

    by_size: ClassVar[bool] = True
    changes_frozen: ClassVar[bool] = True
    takes_stale: ClassVar[bool] = False

    def __init__(self, targets: Mapping[str, Target]) -> None:
        super().__init__()
        self.targets = dict(targets)
        self._tensors: Mapping[str, Tensor] = {}
        self._products: dict[str, Tensor] = {}  # by layer, the weighted sum of products
        self._seed, self._now = 0, 0
        self._stacked = 0  # entries of this round's stack
        self._stacks: list[int] = []  # by round, entries of its stack
        self._merged: dict[int, int] = {}  # by client, the number of stacks that it has
        self._sent: dict[int, int] = {}  # by client of this round, the number of stacks that it is sent

    def setup(self, facts: Facts) -> None:
        """Check the facts.

        Raises:
            ConfigurationError: clients keep residuals or memories, the factors A are frozen, or levels have several
                factors of products.
        """
        check_one_scale("FLoRA", facts)
        if facts.remembers:
            raise ConfigurationError(
                f"Expected clients without {facts.remembers} for FLoRA, whose factors begin anew in every round, but "
                "got some: set enabled: false for error feedback"
            )
        check_trained_a("FLoRA", facts)
        self._seed = facts.seed

    def weight(self, report: Report) -> float:
        """Return the client's number of training samples n_k."""
        return float(report.samples)

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self._now, self._stacked, self._sent = round, 0, {}

    def shared_bytes(self, client: int) -> int:
        """Return the bytes of the stacks that a client lacks, at most those of all merged weights."""
        known = self._merged.get(client, 0)
        self._sent[client] = len(self._stacks)
        weights = sum(self._tensors[target.weight].numel() for target in self.targets.values() if self._tensors)
        return 4 * min(sum(self._stacks[known:]), weights or sum(self._stacks))

    def end_round(self, round: int) -> None:  # noqa: D102
        self._merged |= self._sent
        self._stacks.append(self._stacked)

    def reset(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: D102
        super().reset(tensors)
        self._tensors, self._products = tensors, {}

    def update(self, update: Update, index: Index, report: Report) -> None:
        """Add one client's update.

        Raises:
            ConfigurationError: a client sends only one factor of a layer.
        """
        for pair in pairs_of(self._tensors).values():
            sent = [name for name in pair if name in index]
            if len(sent) == 1:
                raise ConfigurationError(
                    f"Expected clients that send both factors of a layer for FLoRA but got {sent[0]!r} alone: choose "
                    "another part rule, or ProductMean"
                )
        super().update(update, index, report)
        part, trained = part_of(index), trained_values(self._tensors, update, index)
        for layer, (a, b) in pairs_of(trained).items():
            self._stacked += trained[a].numel() + trained[b].numel()
            wide = (widened(trained[name], part[name], self._tensors[name], dim) for name, dim in ((a, 0), (b, -1)))
            a_RI, b_OR = matrices(*(factor.double() for factor in wide))
            product = self.weight(report) * (b_OR @ a_RI)
            self._products[layer] = self._products[layer] + product if layer in self._products else product

    def compute(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return by name the step of every tensor, and the weight of the holders of each entry.

        The weights that products are merged into, and all factors, count as held by all clients.
        """
        means, holders = super().compute()
        for layer, (a, b) in pairs_of(self._tensors).items():
            if layer not in self._products:
                continue
            target = self.targets[layer]
            weight, change = self._tensors[target.weight], target.scale / self._total * self._products[layer]
            means[target.weight] = (change.T if target.transposed else change).reshape(weight.shape).to(weight)
            means[a] = self._drawn(layer, self._tensors[a]) - self._tensors[a].detach()
            means[b] = -self._tensors[b].detach()
            for name in (target.weight, a, b):
                holders[name] = torch.full_like(means[name], self._total)
        return means, holders

    def _drawn(self, layer: str, like: Tensor) -> Tensor:
        """Return a new A, drawn as in a linear layer of its shape."""
        bound, random = 1 / math.sqrt(like[0].numel()), generator(self._seed, "flora", self._now, layer)
        drawn = torch.rand(like.shape, generator=random, dtype=torch.float64)
        return ((2 * drawn - 1) * bound).to(like)

    def state_dict(self) -> dict[str, Any]:
        """Return the sizes of all stacks, and which of them clients have."""
        return {"stacks": list(self._stacks), "merged": dict(self._merged)}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self._stacks, self._merged = list(state["stacks"]), dict(state["merged"])
