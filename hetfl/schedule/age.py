"""How old the model is from which an update was computed, entry by entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hetfl.entries import Entries
from hetfl.part import Part
from hetfl.types import Report
from hetfl.updates import DenseUpdate, SparseUpdate, Update


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


def counted(before_D: Tensor | None, holders: Mapping[str, Tensor], whole: Part) -> Tensor:
    """Return per entry of the global model the number of server steps that changed it, int32, shape (D,).

    Args:
        before_D: the numbers before a step; None: there was no step yet.
        holders: by name, the number or weight of the holders of each entry in the step; an entry without holders did
            not change.
        whole: all of the global model.
    """
    like = next(iter(holders.values()), torch.empty(0))
    changed = [
        (holders[name] > 0).reshape(-1) if name in holders else torch.zeros(size, dtype=torch.bool, device=like.device)
        for name, size in zip(whole, whole.layout.sizes, strict=True)
    ]
    now_D = torch.cat(changed).int()
    return now_D if before_D is None else now_D.add_(before_D.to(now_D.device))


def staleness(now_D: Tensor, taken_D: Tensor | None, part: Part, whole: Part) -> Tensor:
    """Return τ of a part's held entries, int32.

    Args:
        now_D: the present numbers of steps, shape (D,).
        taken_D: the numbers when the client took the model, shape (D,); None: there was no step yet.
        part: the entries.
        whole: all of the global model.
    """
    # The cached value also holds the whole part, so that no other part can get its id().
    _, entries = part.derived(("staleness", id(whole)), lambda: (whole, Entries(part, whole)))
    return entries.take(now_D if taken_D is None else now_D - taken_D.to(now_D.device))


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
