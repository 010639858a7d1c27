"""Compression with error feedback, the wire format and its checks, as multiples of a copy of the vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from timing import Row, interleaved, parser, report, rows, threads
from torch import Tensor

from hetfl import wire
from hetfl.aggregators import HolderMean
from hetfl.compression import Context, ErrorFeedback, HardThreshold, TopK
from hetfl.compression.top_k import count_of
from hetfl.layout import Index
from hetfl.types import Report
from hetfl.updates import SparseUpdate, Update
from hetfl.wire.header import checksum_holds


@dataclass(frozen=True)
class Case:
    """One client's upload.

    Attributes:
        delta_D: the delta, standard normal.
        residual_D: the residual, normal with standard deviation 1/2.
        density: fraction of the entries of their sum that is sent.
        threshold: the threshold λ for this density.
    """

    delta_D: Tensor
    residual_D: Tensor
    density: float
    threshold: float

    @staticmethod
    def of(size: int, density: float) -> Case:
        """Return random vectors of ``size`` entries, and the threshold for a density."""
        random = torch.Generator().manual_seed(3)
        delta_D, residual_D = torch.randn(size, generator=random), torch.randn(size, generator=random) / 2
        kept = max(1, round(density * size))
        return Case(delta_D, residual_D, density, float((delta_D + residual_D).abs().topk(kept).values.min()))

    @property
    def index(self) -> Index:
        """The index of all entries of one flat global tensor."""
        return {"vector": (slice(0, self.delta_D.numel()),)}

    def feedback(self) -> ErrorFeedback:
        """Return an uplink with the residual of client 0."""
        feedback = ErrorFeedback(HardThreshold(threshold=self.threshold))
        feedback.residuals.write(0, self.index, self.residual_D, round=0)
        return feedback


@dataclass(frozen=True)
class Ways:
    """Ways of dividing p = Δ + e into the sent part and the new residual: those of hetfl, and those to compare with.

    Attributes:
        case: the vectors.
        left_D: preallocated memory for the new residual, shape (D,).
    """

    case: Case
    left_D: Tensor

    def threshold(self) -> tuple[Update, Tensor]:
        """Divide at the threshold, by the fused kernel if it is used."""
        case = self.case
        return HardThreshold(case.threshold).split(case.delta_D, case.residual_D, Context(0.1), out=self.left_D)

    def plain_threshold(self) -> tuple[Update, Tensor]:
        """Divide at the threshold, by separate torch operations."""
        p_D = self.case.delta_D + self.case.residual_D
        update = HardThreshold(self.case.threshold).compress(p_D, lr=0.1)
        return update, update.left_of(p_D)

    def top_k(self) -> tuple[Update, Tensor]:
        """Divide into the largest k entries and the rest, by the fused kernel if it is used."""
        case = self.case
        return TopK(case.density).split(case.delta_D, case.residual_D, Context(0.1), out=self.left_D)

    def torch_top_k(self) -> tuple[Tensor, Tensor]:
        """Divide by a plain use of ``torch.topk``."""
        p_D = self.case.delta_D + self.case.residual_D
        indices = p_D.abs().topk(count_of(self.case.density, p_D.numel()), sorted=False).indices
        values = p_D[indices]
        p_D[indices] = 0.0
        return values, p_D

    def check(self) -> None:
        """Compare the results of the ways.

        Raises:
            RuntimeError: two ways send different entries, or leave different residuals.
        """
        sent, left_D = self.plain_threshold()
        fused, fused_left_D = self.threshold()
        if not (torch.equal(fused.to_dense(), sent.to_dense()) and torch.equal(fused_left_D, left_D)):
            raise RuntimeError("Expected the entries that reach the threshold but got others")
        if not torch.equal(self.torch_top_k()[1], self.top_k()[1]):
            raise RuntimeError("Expected the largest k entries but got others")


def checks(payload: bytes, update: SparseUpdate) -> bool:
    """Run the checks that a receiver needs because it does not trust the sender: checksum, finiteness, index range."""
    values = update.values.numpy()
    return checksum_holds(payload) and bool(np.isfinite(values).all()) and int(update.indices[-1]) < update.length


def aggregated(mean: HolderMean, payload: bytes, expected: wire.Expected, index: Index) -> None:
    """Read a message and add it to the mean."""
    mean.update(wire.decode(payload, expected), index, Report(0, "a", samples=1, loss=0.0, flops=0.0))


def sides(case: Case, slow: bool) -> dict[str, Callable[[], object]]:
    """Check the parts of an upload, and return them as functions that can be timed separately.

    ``prepare`` is all work of the client: read and add the residual, compress, encode.

    Args:
        case: the vectors.
        slow: whether to include the ways without the fused kernel.

    Raises:
        RuntimeError: the sent entries are not those that reach the threshold, or the sent part and the new residual do
            not add up.
    """
    feedback, accepting, mean = case.feedback(), case.feedback(), HolderMean()
    p_D = case.delta_D + case.residual_D
    ways = Ways(case, torch.empty_like(p_D))
    ways.check()
    update = feedback.compressor.compress(p_D, lr=0.1)
    message = feedback.prepare(0, case.delta_D, index=case.index, round=1, lr=0.1)
    expected = wire.Expected(round=1, client=0, size=p_D.numel())
    decoded = wire.decode(message.payload, expected)
    if message.residual_D is None or not torch.equal(decoded.to_dense() + message.residual_D, p_D):
        raise RuntimeError("Expected sent and kept to add up to the whole but they don't")
    if not isinstance(update, SparseUpdate) or wire.encode(update, round=1, client=0) != message.payload:
        raise RuntimeError("Expected the parts to give the payload of the whole but got another")
    mean.reset({"vector": p_D})
    without = {"threshold, plain torch": ways.plain_threshold, "torch.topk": ways.torch_top_k} if slow else {}
    return {
        "copy of the vector": lambda: ways.left_D.copy_(p_D),
        "threshold": ways.threshold,
        "top-k": ways.top_k,
        **without,
        "encode": lambda: wire.encode(update, round=1, client=0),
        "decode": lambda: wire.decode(message.payload, expected),
        "checks of the message": lambda: checks(message.payload, update),
        "decode and aggregate": lambda: aggregated(mean, message.payload, expected, case.index),
        "prepare, all of it": lambda: feedback.prepare(0, case.delta_D, index=case.index, round=1, lr=0.1),
        "accept": lambda: accepting.accept(message, decoded),
    }


def upload(size: int, density: float, *, blocks: int, slow: bool = False) -> list[Row]:
    """Return the times of the copy and of the parts of an upload, on one thread; see :func:`sides`."""
    with threads(1):
        # Several calls, because one copy of a short vector is too short for the timer.
        times = interleaved(
            sides(Case.of(size, density), slow), blocks=blocks, calls=max(1, min(10, 10_000_000 // size))
        )
    return rows(f"upload, D = {size:.0e}, {density:.1%} sent, 1 thread", times)


def main() -> None:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--sizes", type=float, nargs="+", default=[1e6, 1e7], help="lengths D of the vector")
    options.add_argument("--densities", type=float, nargs="+", default=[0.001, 0.01, 0.1], help="fractions sent")
    options.add_argument("--slow", action="store_true", help="include plain torch and torch.topk")
    given = options.parse_args()
    results = [
        upload(int(d), share, blocks=given.blocks, slow=given.slow) for d in given.sizes for share in given.densities
    ]
    report([row for case in results for row in case], given.json)


if __name__ == "__main__":
    main()
