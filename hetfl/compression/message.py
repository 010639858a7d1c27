"""What a client has prepared to send."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from hetfl.layout import Index


@dataclass(frozen=True)
class Message:
    """What a client has prepared: the bytes to send, and its residual if the server takes them.

    Attributes:
        client: the client's id.
        round: the round's number.
        index: the entries of the global model that the vector covers.
        payload: the encoded update.
        residual_D: e' = p − decode(payload) in the coordinates of ``index``, shape (D,); None without error feedback.
            Once the message is accepted its memory may be used again.
        buffer: shape (≥ D,), where ``residual_D`` may lie; None: in memory of its own.
        extras: what the compressor has the client report.
    """

    client: int
    round: int
    index: Index
    payload: bytes
    residual_D: Tensor | None
    buffer: Tensor | None = None
    extras: Mapping[str, float] = field(default_factory=dict)
