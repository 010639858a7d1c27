"""The building blocks of nets for token ids: their inputs, the embedding with positions, the mean over tokens.

Shape suffixes: N batch, T tokens, E channels of a token, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.models.layers import Scaler

Pooling = Literal["mean", "none"]
"""The outputs: one per sequence, from the mean over its tokens, (N, K); or one per token, (N, T, K)."""

TokenInputs = Tensor | Mapping[str, Tensor]
"""Token ids (N, T), or a mapping of ``tokens`` (N, T) and ``mask`` (N, T), which is False at padding."""


def tokens_and_mask(inputs: TokenInputs, padding: int | None) -> tuple[Tensor, Tensor | None]:
    """Return token ids and a mask that is False at padding, both (N, T); the mask is None without padding.

    Args:
        inputs: ids of any integer type; a mask of 0 and 1 or of bools.
        padding: the id of padding in inputs without a mask; None: no padding.
    """
    if isinstance(inputs, Tensor):
        return _ids(inputs), None if padding is None else inputs != padding
    return _ids(inputs["tokens"]), inputs["mask"].bool()


def _ids(tokens: Tensor) -> Tensor:
    # Embeddings take only int64 and int32. Floats stay unchanged; torch refuses them.
    return tokens if tokens.is_floating_point() else tokens.long()


def pooled(features_NTE: Tensor, mask_NT: Tensor | None, pooling: Pooling) -> Tensor:
    """Return the mean over the tokens that are not padding, (N, E), or the unchanged features, (N, T, E).

    The mean of a sequence that has only padding is 0.
    """
    if pooling == "none":
        return features_NTE
    if mask_NT is None:
        return features_NTE.mean(1)
    real_NT1 = mask_NT.unsqueeze(-1).to(features_NTE.dtype)
    return (features_NTE * real_NT1).sum(1) / real_NT1.sum(1).clamp(min=1)


def check_pooling(pooling: str) -> None:
    """Refuse an unknown kind of pooling.

    Raises:
        ConfigurationError: the pooling is neither ``mean`` nor ``none``.
    """
    if pooling not in ("mean", "none"):
        raise ConfigurationError(f"Expected pooling in ('mean', 'none') but got {pooling!r}")


class PositionalEmbedding(nn.Module):
    """The embedding of a token plus the embedding of its position, Scaler, dropout.

    Args:
        vocab_size: number of token ids; never scaled.
        max_length: maximum number of tokens of a sequence; never scaled.
        channels: channels E of a token.
        dropout: dropout probability.
        width: ratio for the Scaler.
    """

    def __init__(self, vocab_size: int, max_length: int, channels: int, dropout: float, width: float) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab_size, channels)
        self.position = nn.Parameter(torch.empty(max_length, channels))
        nn.init.normal_(self.position, std=0.02)
        self.scaler = Scaler(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_NT: Tensor) -> Tensor:
        """Return the channels of every token, shape (N, T, E).

        Raises:
            ValueError: there are more tokens than positions.
        """
        length, longest = tokens_NT.shape[1], len(self.position)
        if length > longest:
            raise ValueError(f"Expected at most max_length {longest} tokens but got {length}")
        features_NTE: Tensor = self.dropout(self.scaler(self.token(tokens_NT) + self.position[:length]))
        return features_NTE
