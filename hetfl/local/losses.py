"""Losses of one client or of several at once."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy, averaged over the batch.

    Args:
        logits: shape (N, K), or (S, N, K) of S clients.
        targets: shape (N,), or (S, N).

    Returns:
        A scalar, or shape (S,).
    """
    if logits.dim() == 2:
        return F.cross_entropy(logits, targets)
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(-1)
