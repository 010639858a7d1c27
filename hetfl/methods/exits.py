"""What methods for nets with several exits share."""

from __future__ import annotations

from torch import Tensor


def named_heads(logits_HNK: Tensor) -> dict[str, Tensor]:
    """Return the logits of each exit, shape (N, K), by name: ``head_1`` is the shallowest."""
    return {f"head_{i}": logits_NK for i, logits_NK in enumerate(logits_HNK, start=1)}
