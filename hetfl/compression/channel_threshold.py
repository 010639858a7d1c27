"""Send whole filters, or nothing of them."""

from __future__ import annotations

import torch
from torch import Tensor

from hetfl.compression.amounts import require_one_amount
from hetfl.compression.base import Compressor, Context
from hetfl.compression.buckets import reduced
from hetfl.layout import Layout
from hetfl.updates import SparseUpdate


class ChannelThreshold(Compressor):
    r"""Send the filters whose summed magnitude reaches a threshold, whole; a row of a matrix is a filter.

    .. math:: \{ i \in f : \textstyle\sum_{j \in f} |p_j| \ge \lambda |f| \}

    over filters f: the entries of a tensor that share their first index. Tensors of one dimension (biases, norm layers)
    are one filter each. With λ |f| in the place of λ filters of any size are measured alike. Filters travel as runs, so
    their indices cost next to nothing.

    After FedSCR, Wu et al., IEEE TPDS 2020 (structure-based communication reduction); its rule for λ per client is not
    public, so λ is given, or such that the filters of largest mean magnitude make up the share ``density``.

    Args:
        threshold: λ, at least 0, on the mean magnitude of a filter.
        density: the most that is sent, as a share of the entries, in (0, 1]; the largest filter is sent in any case.

    Raises:
        ConfigurationError: not exactly one of ``threshold`` and ``density`` is given, or it is out of range.
    """

    def __init__(self, threshold: float | None = None, density: float | None = None) -> None:
        require_one_amount(threshold=threshold, density=density)
        self._given, self.density = threshold, density

    def settings(self) -> dict[str, object]:  # noqa: D102
        return super().settings() | {"threshold": self._given}

    def threshold(self, lr: float) -> float | None:  # noqa: D102
        return self._given

    @property
    def needs_shapes(self) -> bool:  # noqa: D102
        return True

    def apply(self, p_D: Tensor, context: Context) -> SparseUpdate:  # noqa: D102
        sizes_F = filter_sizes(context.layout or Layout({"vector": (p_D.numel(),)})).to(p_D.device)
        sums_F = reduced(p_D.abs().double(), sizes_F, "sum")
        means_F = sums_F / sizes_F
        if self._given is not None:
            keep_F = (means_F >= self._given) & (means_F > 0)
        else:
            assert self.density is not None  # the constructor took exactly one of the two
            order = means_F.argsort(descending=True, stable=True)
            fits = sizes_F[order].cumsum(0) <= self.density * p_D.numel()
            fits[:1] = True
            keep_F = torch.zeros_like(means_F, dtype=torch.bool)
            keep_F[order[fits]] = True
        indices = keep_F.repeat_interleave(sizes_F).nonzero().squeeze(1)
        return SparseUpdate(p_D[indices], indices, p_D.numel())


def filter_sizes(layout: Layout) -> Tensor:
    """Return the entries of every filter of a layout, in order; filters without entries are left out.

    >>> filter_sizes(Layout({"weight": (2, 3, 2), "bias": (2,), "scale": ()})).tolist()
    [6, 6, 2, 1]
    """
    sizes = []
    for shape, size in zip(layout.shapes.values(), layout.sizes, strict=True):
        rows = shape[0] if len(shape) > 1 else 1
        sizes += [size // rows] * rows if size else []
    return torch.tensor(sizes, dtype=torch.int64)
