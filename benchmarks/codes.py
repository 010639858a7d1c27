"""What logarithmic codes cost beside float32 values: quantising, encoding and decoding a sparse update."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from timing import Row, interleaved, parser, report, rows, threads

from hetfl import wire
from hetfl.compression import LogQuantizer, TopK
from hetfl.updates import SparseUpdate


def update_of(size: int, density: float) -> SparseUpdate:
    """Return the largest entries of a vector of standard normal numbers as float32."""
    update = TopK(density).compress(torch.randn(size, generator=torch.Generator().manual_seed(3)), lr=0.1)
    if not isinstance(update, SparseUpdate):
        raise TypeError(f"Expected a sparse update but got {type(update).__name__}")
    return update


def coded(update: SparseUpdate, bits: int) -> SparseUpdate:
    """Return the update with codes in the place of its values."""
    quantised = LogQuantizer(bits).quantised(update, None, None)
    if not isinstance(quantised, SparseUpdate):
        raise TypeError(f"Expected a sparse update but got {type(quantised).__name__}")
    return quantised


def both(update: SparseUpdate, bits: int) -> bytes:
    """Quantise the values, and encode the update."""
    return wire.encode(coded(update, bits), round=1, client=0)


def cost(size: int, density: float, bits: tuple[int, ...], *, blocks: int) -> list[Row]:
    """Return the processor seconds of encoding, and of decoding, with float32 values and with codes, on one thread.

    Raises:
        RuntimeError: a decoded update differs from the one that was encoded.
    """
    update = update_of(size, density)
    expected = wire.Expected(round=1, client=0, size=size)
    updates = {"float32": update, **{f"{b} bits": coded(update, b) for b in bits}}
    payloads = {name: wire.encode(sent, round=1, client=0) for name, sent in updates.items()}
    for name, sent in updates.items():
        if not torch.equal(wire.decode(payloads[name], expected).to_dense(), sent.to_dense()):
            raise RuntimeError(f"Expected the update of {name} but got another")
    encoders: dict[str, Callable[[], object]] = {
        name: partial(wire.encode, sent, round=1, client=0) for name, sent in updates.items()
    }
    quantising = {f"{b} bits, quantised": partial(both, update, b) for b in bits}
    decoders: dict[str, Callable[[], object]] = {
        name: partial(wire.decode, payload, expected) for name, payload in payloads.items()
    }
    calls = max(1, min(20, 20_000_000 // size))
    with threads(1):
        encoding = interleaved({**encoders, **quantising}, blocks=blocks, calls=calls, clock=time.thread_time)
        decoding = interleaved(decoders, blocks=blocks, calls=calls, clock=time.thread_time)
    case = f"D = {size:.0e}, {density:.1%} sent"
    return [*rows(f"encode, {case}", encoding), *rows(f"decode, {case}", decoding)]


def main() -> None:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--sizes", type=float, nargs="+", default=[1e5, 1e6, 1e7], help="lengths D of the vector")
    options.add_argument("--density", type=float, default=0.01, help="fraction sent (default: %(default)s)")
    options.add_argument("--bits", type=int, nargs="+", default=[3, 4], help="bits of a code")
    given = options.parse_args()
    results = [cost(int(size), given.density, tuple(given.bits), blocks=given.blocks) for size in given.sizes]
    report([row for case in results for row in case], given.json)


if __name__ == "__main__":
    main()
