"""The mean of zero-padded low-rank factors over all clients, which shrinks ranks that few clients hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from hetfl.aggregators.holder_mean import HolderMean
from hetfl.arguments import choice
from hetfl.factors import pairs_of, product_norm
from hetfl.layout import Index
from hetfl.part import part_of
from hetfl.submodel import take
from hetfl.types import Report
from hetfl.updates import Update

Weights = Literal["samples", "products"]
"""The weights of clients: their numbers of samples, or the norms of their products."""


class ZeroPadMean(HolderMean):
    r"""The mean of clients' factors, in which a client of a smaller rank has zeros in place of the ranks it lacks.

    .. math:: \theta_j \leftarrow \frac{\sum_{k \in H_j} w_k (\theta_j + u_{k,j})}{\sum_k w_k}

    It is the common rule for clients of different ranks, and a baseline: an idle client that does not hold a rank pulls
    both its factors towards 0. With a share c of the weights among its holders, a rank's product falls by c² in every
    round without training; this is the rank collapse that the mean over holders avoids. Tensors that are no factors get
    the mean over their holders, and an entry that no client of the round holds keeps its value.

    With ``weights: products`` a client's weight is the norm of its products, which is HetLoRA's rule (Cho et al.,
    EMNLP 2024, arXiv 2401.06432):

    .. math:: w_k = \sqrt{\textstyle\sum_l \lVert B_{k,l} A_{k,l} \rVert_F^2}

    The products are those of the present factors with the client's change, also if it began with an older model.

    Args:
        weights: ``samples``: clients weigh by their samples; ``products``: by the norm of their products.

    Raises:
        ConfigurationError: ``weights`` is neither of them.
    """

    def __init__(self, weights: Weights = "samples") -> None:
        super().__init__()
        self.weights = choice("weights", weights, Weights)
        self._tensors: Mapping[str, Tensor] = {}
        self._weight = 1.0

    @property
    def by_size(self) -> bool:  # type: ignore[override]
        """Whether clients weigh by their samples."""
        return self.weights == "samples"

    def weight(self, report: Report) -> float:
        """Return the weight of the client whose update is being added."""
        return self._weight

    def reset(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: D102
        super().reset(tensors)
        self._tensors = tensors

    def update(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        self._weight = float(report.samples) if self.by_size else self._norm(update, index)
        super().update(update, index, report)

    def _norm(self, update: Update, index: Index) -> float:
        """Return the norm of all products of a client, above 0."""
        trained, squared = trained_values(self._tensors, update, index), 0.0
        for a, b in pairs_of(self._tensors).values():
            if b in trained or a in trained:
                rank = (trained[b] if b in trained else trained[a].movedim(0, -1)).shape[-1]
                factors = trained.get(a, self._tensors[a][:rank]), trained.get(b, self._tensors[b][..., :rank])
                squared += product_norm(*factors) ** 2
        return max(math.sqrt(squared), torch.finfo(torch.float64).tiny)

    def compute(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # noqa: D102
        means, holders = super().compute()
        for name in {name for pair in pairs_of(self._tensors).values() for name in pair}:
            held = holders[name]
            share = held / self._total
            padded = share * means[name] - (1.0 - share) * self._tensors[name].detach()
            means[name] = padded.masked_fill(held == 0, 0.0)
        return means, holders


def trained_values(tensors: Mapping[str, Tensor], update: Update, index: Index) -> dict[str, Tensor]:
    """Return by name a client's tensors after its training, in the shapes of its part."""
    part = part_of(index)
    deltas = part.layout.views(part.spread(update.whole()))
    return {name: take(tensors[name].detach(), entry) + deltas[name].to(tensors[name]) for name, entry in part.items()}
