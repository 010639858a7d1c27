"""Error feedback with a hard threshold and the wire, as multiples of a copy of the vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from timing import Row, interleaved, parser, report, rows, threads
from torch import Tensor

from hetfl import wire
from hetfl.compression import ErrorFeedback, HardThreshold
from hetfl.types import Index
from hetfl.updates import SparseUpdate


@dataclass(frozen=True)
class Case:
    """One client's upload.

    Attributes:
        delta_D: the delta, normal.
        residual_D: the residual, normal and half as large.
        threshold: such that the wanted share of their sum is sent.
    """

    delta_D: Tensor
    residual_D: Tensor
    threshold: float

    @staticmethod
    def of(size: int, density: float) -> Case:
        """Return random vectors of ``size`` entries, and the threshold for a density."""
        random = torch.Generator().manual_seed(3)
        delta_D, residual_D = torch.randn(size, generator=random), torch.randn(size, generator=random) / 2
        kept = max(1, round(density * size))
        return Case(delta_D, residual_D, float((delta_D + residual_D).abs().topk(kept).values.min()))

    @property
    def index(self) -> Index:
        """All of one flat global tensor."""
        return {"vector": (slice(0, self.delta_D.numel()),)}

    def feedback(self) -> ErrorFeedback:
        """Return an uplink in which client 0 has the residual."""
        feedback = ErrorFeedback(HardThreshold(threshold=self.threshold))
        feedback.residuals.save(0, {"vector": self.residual_D}, round=0)
        return feedback


def sides(case: Case) -> dict[str, Callable[[], object]]:
    """Return the parts of an upload, each to be run on its own; before that, check what they compute.

    ``prepare`` is everything that the client does: read and add the residual, compress, encode, decode, subtract.

    Raises:
        RuntimeError: what is sent is not what reaches the threshold, or what is sent and what is kept don't add up.
    """
    feedback, accepting = case.feedback(), case.feedback()
    p_D = case.delta_D + case.residual_D
    update = feedback.compressor.compress(p_D, lr=0.1)
    message = feedback.prepare(0, case.delta_D, index=case.index, round=1, lr=0.1)
    expected = wire.Expected(round=1, client=0, size=p_D.numel())
    decoded = wire.decode(message.payload, expected)
    if not torch.equal(decoded.to_dense(), torch.where(p_D.abs() >= case.threshold, p_D, 0.0)):
        raise RuntimeError("Expected the entries that reach the threshold but got others")
    if message.residual_D is None or not torch.equal(decoded.to_dense() + message.residual_D, p_D):
        raise RuntimeError("Expected sent and kept to add up to the whole but they don't")
    if not isinstance(update, SparseUpdate) or wire.encode(update, round=1, client=0) != message.payload:
        raise RuntimeError("Expected the parts to give the payload of the whole but got another")
    target = torch.empty_like(p_D)
    return {
        "copy of the vector": lambda: target.copy_(p_D),
        "compress": lambda: feedback.compressor.compress(p_D, lr=0.1),
        "encode": lambda: wire.encode(update, round=1, client=0),
        "decode": lambda: wire.decode(message.payload, expected),
        "prepare, all of it": lambda: feedback.prepare(0, case.delta_D, index=case.index, round=1, lr=0.1),
        "accept": lambda: accepting.accept(message, decoded),
    }


def upload(size: int, density: float, *, blocks: int) -> list[Row]:
    """Return the times of the copy and of the parts of an upload, on one thread."""
    with threads(1):
        # One copy of a short vector would be too short to time.
        times = interleaved(sides(Case.of(size, density)), blocks=blocks, calls=max(1, min(10, 10_000_000 // size)))
    return rows(f"upload, D = {size:.0e}, {density:.1%} sent, 1 thread", times)


def main() -> None:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--sizes", type=float, nargs="+", default=[1e6, 1e7], help="lengths D of the vector")
    options.add_argument("--densities", type=float, nargs="+", default=[0.001, 0.01, 0.1], help="shares sent")
    given = options.parse_args()
    found = [upload(int(d), share, blocks=given.blocks) for d in given.sizes for share in given.densities]
    report([row for case in found for row in case], given.json)


if __name__ == "__main__":
    main()
