"""Bits per index in a message, and the minimum of any code: log2 C(d, k) / k.

Indices are random; the printed numbers are means over draws of the whole block, including its first byte.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from hetfl.wire.indices import encode_indices

LENGTHS = (10_000, 100_000, 1_000_000)
DENSITIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


def entropy_bits(length: int, count: int) -> float:
    """Return log2 C(d, k): the entropy in bits of a uniform choice of k = ``count`` of d = ``length`` entries."""
    return (math.lgamma(length + 1) - math.lgamma(count + 1) - math.lgamma(length - count + 1)) / math.log(2)


def block_bits(length: int, count: int, draws: int) -> float:
    """Return the mean bits of the blocks of random indices."""
    generator = np.random.default_rng(length + count)
    chosen = (np.sort(generator.choice(length, count, replace=False)) for _ in range(draws))
    return float(np.mean([8 * encode_indices(indices).size for indices in chosen]))


def ratio(length: int, density: float, draws: int) -> float:
    """Return the bits of random indices over their entropy."""
    count = round(density * length)
    return block_bits(length, count, draws) / entropy_bits(length, count)


def table(draws: int) -> str:
    """Return the table of ``docs/wire.md``."""
    lines = [
        "| density | " + " | ".join(f"d = {length:,}".replace(",", " ") for length in LENGTHS) + " |",
        "|---" * (1 + len(LENGTHS)) + "|",
    ]
    for density in DENSITIES:
        cells = []
        for length in LENGTHS:
            count = round(density * length)
            sent, least = block_bits(length, count, draws), entropy_bits(length, count)
            cells.append(f"{sent / count:.2f} / {least / count:.2f} = {sent / least:.3f}")
        lines.append(f"| {100 * density:g} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=20, help="random choices per cell")
    print(table(parser.parse_args().draws))
