"""The one door through which every delta leaves a client: what a compressor leaves out is sent later."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hetfl.compression.base import Compressor
from hetfl.compression.residuals import MemoryResiduals, ResidualStore
from hetfl.submodel import extent, index_layout, put, take
from hetfl.types import Index, IndexEntry, Update
from hetfl.wire import Expected, decode, encode


@dataclass(frozen=True)
class Message:
    """What a client has prepared: the bytes to send, and its residual if the server takes them.

    Attributes:
        client: the client's id.
        round: the round's number.
        index: the entries of the global model that the vector covers.
        payload: the encoded update.
        residual_D: e' = p − decode(payload) in the coordinates of ``index``, shape (D,); None without error feedback.
    """

    client: int
    round: int
    index: Index
    payload: bytes
    residual_D: Tensor | None


class ErrorFeedback:
    """Add to each delta what was left out before, compress the sum, and keep what is left out now.

    With e_k the residual of client k in global coordinates and I its upload index:

        p = Δ_k + e_k[I],   u = decode(encode(C(p))),   e_k[I] ← p − u   once the server has accepted.

    Entries of e_k outside I are neither sent nor touched. A message that was never accepted changes nothing: the client
    loses its delta and keeps its residual. Rounding on the wire is in the residual, as u is what the server decodes.
    Sparsifiers satisfy u + e' = fl(Δ + e) bit for bit, so over a run Σ u + e = Σ Δ up to the rounding of Δ + e.

    Error feedback: Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019, arXiv 1901.09847. In global
    coordinates, for sub-models that change: ours.

    Residuals are in units of the delta (they contain the learning rate of their round) and live on the CPU; vectors may
    be on any device. A client has at most one message under way.

    Args:
        compressor: C.
        residuals: where e_k is kept; None: in memory.
        half_precision: send values as float16.
        enabled: False sends C(Δ) and keeps nothing.
    """

    def __init__(
        self,
        compressor: Compressor,
        residuals: ResidualStore | None = None,
        half_precision: bool = False,
        enabled: bool = True,
    ) -> None:
        self.compressor = compressor
        self.residuals = MemoryResiduals() if residuals is None else residuals
        self.half_precision = half_precision
        self.enabled = enabled
        self._squared_norms: dict[int, float] = {}

    def prepare(
        self,
        client: int,
        delta_D: Tensor,
        *,
        index: Index,
        round: int,
        lr: float,
        exact: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Message:
        """Return the message for a delta; no client's state changes.

        Args:
            client: the client's id.
            delta_D: Δ_k, shape (D,), in the coordinates of ``index``; not modified.
            index: the client's upload index I.
            round: the round's number.
            lr: the clients' learning rate γ_t.
            exact: entries that travel beside the vector, uncompressed.
            generator: source of randomness for a compressor that draws.

        Raises:
            ValueError: ``delta_D`` has another length than ``index``, or Δ + e holds NaN or Inf or overflows float16.
        """
        layout = index_layout(index)
        if delta_D.shape != (layout.size,):
            raise ValueError(
                f"Expected a delta of shape ({layout.size},) from client {client} but got {tuple(delta_D.shape)}"
            )
        blocks = self.residuals.load(client) if self.enabled else {}
        p_D = delta_D + _read(blocks, index, delta_D) if blocks else delta_D
        update = self.compressor.compress(p_D, lr=lr, layout=layout, client=client, generator=generator)
        if exact is not None:
            update = update.with_exact(exact)
        payload = encode(update, round=round, client=client, half_precision=self.half_precision)
        if not self.enabled:
            return Message(client, round, index, payload, None)
        expected = Expected(round, client, layout.size, update.exact.numel(), p_D.dtype, update.exact.dtype)
        residual_D = p_D - decode(payload, expected).to_dense().to(p_D.device)
        return Message(client, round, index, payload, residual_D)

    def accept(self, message: Message, update: Update) -> None:
        """Make the prepared residual the client's, and let the compressor learn: the server took the update.

        Args:
            message: what :meth:`prepare` returned.
            update: what the server decoded.
        """
        self.compressor.observe(update)
        if message.residual_D is None:
            return
        blocks = self.residuals.load(message.client)
        if not blocks and not bool(message.residual_D.any()):
            return
        written = _written(blocks, message.index, message.residual_D.cpu())
        self.residuals.save(message.client, written, message.round)
        self._squared_norms.pop(message.client, None)
        if written:
            self._squared_norms[message.client] = math.fsum(_squared_norm(block) for block in written.values())

    def end_round(self) -> None:
        """Close the round after its last accepted update."""
        self.compressor.end_round()

    def norm(self) -> float:
        """Return the norm of all residuals together, sqrt(Σ_k ‖e_k‖²), whatever the order of the clients."""
        return math.sqrt(math.fsum(self._squared_norms.values()))

    def state_dict(self) -> dict[str, Any]:
        """Return residuals, norms and the compressor's state in plain types and tensors."""
        return {
            "compressor": self.compressor.state_dict(),
            "residuals": self.residuals.state_dict(),
            "clients": torch.tensor(list(self._squared_norms), dtype=torch.int64),
            "squared_norms": torch.tensor(list(self._squared_norms.values()), dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.compressor.load_state_dict(state["compressor"])
        self.residuals.load_state_dict(state["residuals"])
        self._squared_norms = dict(zip(state["clients"].tolist(), state["squared_norms"].tolist(), strict=True))

    def checkpointed(self) -> None:
        """Learn that a checkpoint with the last :meth:`state_dict` is on the disk."""
        self.residuals.checkpointed()


def _on_cpu(entry: IndexEntry) -> IndexEntry:
    return tuple(part if isinstance(part, slice) else part.cpu() for part in entry)


def _grown(block: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a block with zeros up to ``shape`` where it is smaller; the block itself if it is nowhere."""
    wanted = [max(sizes) for sizes in zip(block.shape, shape, strict=True)]
    if list(block.shape) == wanted:
        return block
    grown = block.new_zeros(wanted)
    grown[tuple(slice(size) for size in block.shape)] = block
    return grown


def _read(blocks: Mapping[str, Tensor], index: Index, like: Tensor) -> Tensor:
    """Return e[I] as a flat vector with the dtype and device of ``like``; 0 where no block reaches."""
    parts = []
    for (name, entry), size in zip(index.items(), index_layout(index).sizes, strict=True):
        if name in blocks:
            parts.append(take(_grown(blocks[name], extent(entry)), _on_cpu(entry)).reshape(-1))
        else:
            parts.append(torch.zeros(size, dtype=like.dtype))
    return torch.cat(parts).to(like)


def _written(blocks: Mapping[str, Tensor], index: Index, residual_D: Tensor) -> dict[str, Tensor]:
    """Return blocks with e[I] ← residual, new ones where they change; one that is zero everywhere is dropped."""
    written = dict(blocks)
    for (name, entry), part in zip(index.items(), index_layout(index).views(residual_D).values(), strict=True):
        shape = extent(entry)
        written[name] = _grown(blocks[name], shape).clone() if name in blocks else residual_D.new_zeros(shape)
        put(written[name], _on_cpu(entry), part)
    return {name: block for name, block in written.items() if bool(block.any())}


def _squared_norm(block: Tensor) -> float:
    return float(torch.linalg.vector_norm(block, dtype=torch.float64)) ** 2
