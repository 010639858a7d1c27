"""How old the model is from which an update was computed, entry by entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hetfl.entries import gather_flat
from hetfl.part import Part
from hetfl.types import Report
from hetfl.updates import DenseUpdate, SparseUpdate, Update

Counts = Mapping[str, Tensor]
"""By name of a tensor, the number of server steps that changed each entry; the shape expands to the tensor's."""


@dataclass(frozen=True)
class Age:
    """The staleness of an update.

    Attributes:
        steps: server steps since its client took the model.
        mean: mean over the sent entries of τ, the number of these steps that changed the entry.
        most: the largest τ.
        change: returns what is aggregated in place of the decoded update; None: the update itself.
    """

    steps: int = 0
    mean: float = 0.0
    most: int = 0
    change: Callable[[Update], Update] | None = None

    def of(self, report: Report) -> Report:
        """Return a report with the staleness of its update."""
        return replace(report, staleness=self.steps, entry_staleness=self.mean)

    def applied(self, update: Update) -> Update:
        """Return what is aggregated in place of a decoded update."""
        return update if self.change is None else self.change(update)


FRESH = Age()
"""The age of an update of the present model."""


def counted(before: Counts, holders: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the counts after a server step.

    Args:
        before: the counts before the step; entries of other tensors are 0.
        holders: by name, the number or weight of the holders of each entry; an entry without holders did not change.
    """
    changed = {name: _narrow(held) > 0 for name, held in holders.items()}
    return {**before, **{name: each.int() + _like(before, name, each) for name, each in changed.items()}}


def _like(counts: Counts, name: str, like: Tensor) -> Tensor | int:
    """Return a tensor's counts on the device of ``like``; 0 if it never changed."""
    return counts[name].to(like.device) if name in counts else 0


def _narrow(held: Tensor) -> Tensor:
    """Return a tensor with size 1 in the dimensions along which it was expanded."""
    for dim, (size, stride) in enumerate(zip(held.shape, held.stride(), strict=True)):
        if size > 1 and stride == 0:
            held = held.narrow(dim, 0, 1)
    return held


def staleness(now: Counts, taken: Counts, part: Part, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return τ of a part's held entries, int32, shape (D,).

    Args:
        now: the present counts.
        taken: the counts when the client took the model.
        part: the entries.
        tensors: the global model's tensors, for their shapes.
    """
    ages = {}
    for name in part:
        like = tensors[name]
        since = now[name] - _like(taken, name, now[name]) if name in now else torch.zeros((), dtype=torch.int32)
        ages[name] = since.to(like.device).expand(like.shape)
    return gather_flat(ages, part)


def weighted(update: Update, factors_D: Tensor) -> Update:
    """Return an update with each entry, those of the exact block last, multiplied by its factor, shape (D,)."""
    size = update.size
    exact = update.exact * factors_D[size:].to(update.exact) if update.exact.numel() else update.exact
    if isinstance(update, SparseUpdate):
        kept = factors_D[:size].to(update.values)[update.indices]
        return update.with_values(update.values * kept).with_exact(exact)
    values_D = update.to_dense()
    return DenseUpdate(values_D * factors_D[:size].to(values_D), exact=exact)


def moved(update: Update, by_D: Tensor, factors_D: Tensor) -> Update:
    """Return the dense update :math:`s_j (u_j + d_j)`, with d the vector ``by_D`` and s ``factors_D``, shapes (D,)."""
    whole_D = (update.whole() + by_D) * factors_D.to(by_D)
    return DenseUpdate(whole_D[: update.size], exact=whole_D[update.size :])
