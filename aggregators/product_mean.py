"""The mean of clients' low-rank changes in product space, brought back to factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hetfl.aggregators.holder_mean import HolderMean
from hetfl.aggregators.levels_of_factors import check_one_scale, check_trained_a, widened
from hetfl.arguments import choice
from hetfl.errors import ConfigurationError
from hetfl.factors import matrices, pairs_of, refactored
from hetfl.layout import Index
from hetfl.part import part_of
from hetfl.piece import Facts
from hetfl.submodel import take
from hetfl.types import Report
from hetfl.updates import Update

Form = Literal["change", "product"]
"""What is averaged: the changes of clients' products, or the products."""


class ProductMean(HolderMean):
    r"""The mean of what clients changed of the products BA, as the best factors of rank R.

    .. math:: W \leftarrow W + \sum_k p_k (B_k A_k - B_k^0 A_k^0), \qquad W = B A, \qquad p_k = n_k / \sum_i n_i

    :math:`A_k^0` and :math:`B_k^0` are the factors that client k began with, of its rank. The mean of B times the mean
    of A is not the mean of BA; this rule has no such cross terms, and a rank that a client does not hold stays as it is
    (FedHL, arXiv 2505.18494; FedHera, ICML 2026, "unbiased"). The new factors come from a QR decomposition of the
    stacked factors and a singular value decomposition of a small matrix, so the leading r of R ranks are the best
    factors of rank r of the new product. Ranks beyond R are lost. If no client has changed the factors of a layer, they
    stay bit for bit. All other tensors get the mean over their holders, weighted by samples.

    With ``form: product`` it is FlexLoRA's rule (Bai et al., NeurIPS 2024, arXiv 2402.11505),
    :math:`W \leftarrow \sum_k p_k B_k A_k`: ranks that few clients hold shrink.

    All levels need the same factor s of products, and others are refused. A client of a narrower level has zeros in
    place of the inputs and outputs that it does not hold; it must send both factors of a layer. The server's optimizer
    should be SGD(lr=1), which takes the step as it is. Factors of different rounds have no common coordinates, so
    residuals and memories of penalties would be added to other ranks than they belong to: a run with error feedback of
    a compressor that leaves something out, or with memories, is refused. The server takes its own factors for those
    that clients began with: schedules in which clients begin with older models are refused, and with a lossy
    ``downlink`` the mean is not exact.

    Args:
        form: ``change`` or ``product``.

    Raises:
        ConfigurationError: ``form`` is neither of them.
    """

    by_size: ClassVar[bool] = True
    takes_stale: ClassVar[bool] = False

    def __init__(self, form: Form = "change") -> None:
        super().__init__()
        self.form = choice("form", form, Form)
        self._tensors: Mapping[str, Tensor] = {}
        self._pairs: dict[str, tuple[str, str]] = {}
        self._stacks: dict[str, list[tuple[Tensor, Tensor]]] = {}  # by layer: factors A and weighted B
        self._seen: dict[str, bool] = {}  # by layer, whether a client changed it

    def setup(self, facts: Facts) -> None:
        """Check the facts.

        Raises:
            ConfigurationError: clients keep residuals or memories, the factors A are frozen, or levels have several
                factors of products.
        """
        check_one_scale("ProductMean", facts)
        if facts.remembers:
            raise ConfigurationError(
                f"Expected clients without {facts.remembers} for ProductMean, whose factors turn in every round, but "
                "got some: set enabled: false for error feedback, or choose HolderMean"
            )
        check_trained_a("ProductMean", facts)

    def weight(self, report: Report) -> float:
        """Return the client's number of training samples n_k."""
        return float(report.samples)

    def reset(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: D102
        super().reset(tensors)
        self._tensors, self._pairs = tensors, pairs_of(tensors)
        self._stacks = {layer: [] for layer in self._pairs}
        self._seen = dict.fromkeys(self._pairs, False)

    def update(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        super().update(update, index, report)
        part, weight = part_of(index), self.weight(report)
        deltas = part.layout.views(part.spread(update.whole()))
        for layer, (a, b) in self._pairs.items():
            if a not in part and b not in part:
                continue
            (a0, da), (b0, db) = (self._factor(name, part, deltas, other) for name, other in ((a, b), (b, a)))
            self._seen[layer] |= bool(da.any()) or bool(db.any())
            # (B0 + dB)(A0 + dA) - B0 A0 = dB (A0 + dA) + B0 dA
            product, change = [(a0 + da, b0 + db)], [(a0 + da, db), (da, b0)]
            for left, right in product if self.form == "product" else change:
                a_RI, b_OR = matrices(left, right)
                self._stacks[layer].append((a_RI, weight * b_OR))

    def _factor(self, name: str, part: Index, deltas: Mapping[str, Tensor], other: str) -> tuple[Tensor, Tensor]:
        """Return a factor as a client began with it, and its change, which is 0 if the client does not send it.

        Raises:
            ConfigurationError: the client does not send it, and holds some of the layer's inputs or outputs alone.
        """
        whole, dim = self._tensors[name].detach(), 0 if name.endswith("A") else -1
        if name in part:
            begun, delta = take(whole, part[name]).double(), deltas[name].to(whole).double()
            return widened(begun, part[name], whole, dim), widened(delta, part[name], whole, dim)
        of_ranks, sent, full = -1 - dim, deltas[other], self._tensors[other]
        if sent.numel() * full.shape[of_ranks] < full.numel() * sent.shape[of_ranks]:
            raise ConfigurationError(
                f"Expected both factors of a layer from narrower clients for ProductMean but got {other!r} alone"
            )
        entry: list[slice | Tensor] = [slice(0, size) for size in whole.shape]
        entry[dim] = part[other][of_ranks]
        begun = take(whole, tuple(entry)).double()
        return begun, torch.zeros_like(begun)

    def compute(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return by name the step of every tensor, and the weight of the holders of each entry.

        All ranks of a layer that a client has changed count as held by all clients.
        """
        means, holders = super().compute()
        for layer, (a, b) in self._pairs.items():
            if not self._stacks[layer] or (self.form == "change" and not self._seen[layer]):
                means[a], means[b] = (torch.zeros_like(self._tensors[name]) for name in (a, b))
                continue
            old_a, old_b = (self._tensors[name].detach() for name in (a, b))
            before = [tuple(each.double() for each in matrices(old_a, old_b))] if self.form == "change" else []
            changes = [(left, right / self._total) for left, right in self._stacks[layer]]
            stack_a = torch.cat([left for left, _ in [*before, *changes]])
            stack_b = torch.cat([right for _, right in [*before, *changes]], dim=1)
            new_a, new_b = refactored(stack_a, stack_b, len(old_a))
            means[a] = (new_a.view(old_a.shape) - old_a.double()).to(old_a)
            means[b] = (new_b.view(old_b.shape) - old_b.double()).to(old_b)
            for name in (a, b):
                holders[name] = torch.full_like(means[name], self._total)
        return means, holders
