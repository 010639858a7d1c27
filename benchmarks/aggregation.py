"""The holder mean of ten PreActResNet-18 slices, as a multiple of the time of a memory copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from timing import Row, interleaved, parser, report, rows, threads
from torch import Tensor

from hetfl import HeteroFL
from hetfl.aggregators import HolderMean
from hetfl.layout import Index
from hetfl.levels.level_set import LevelSet
from hetfl.models import PreActResNet
from hetfl.part import index_layout
from hetfl.submodel import state_of
from hetfl.types import Report
from hetfl.updates import DenseUpdate


@dataclass(frozen=True)
class Uploads:
    """The uploads of a round.

    Attributes:
        tensors: the global model.
        vectors: the decoded vector of each client.
        indices: the index of each client.
        levels: the name of the level of each client.
    """

    tensors: dict[str, Tensor]
    vectors: Sequence[Tensor]
    indices: Sequence[Index]
    levels: Sequence[str]


def uploads(clients: int = 10, hidden: tuple[int, ...] = (64, 128, 256, 512)) -> Uploads:
    """Return random vectors of clients at levels a to e in turn."""
    levels = LevelSet(partial(PreActResNet, hidden=hidden), HeteroFL.default_levels, seed=0)
    names = [list(levels)[k % len(levels)] for k in range(clients)]
    random = torch.Generator().manual_seed(2)
    indices = [levels.indices[name] for name in names]
    vectors = [torch.randn(index_layout(index).size, generator=random) for index in indices]
    tensors = {name: tensor.detach() for name, tensor in state_of(levels.net).items()}
    return Uploads(tensors, vectors, indices, names)


def holder_mean(mean: HolderMean, given: Uploads) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return delta and holders as computed by the framework, with one aggregator for all rounds."""
    mean.reset(given.tensors)
    for k, (vector, index, level) in enumerate(zip(given.vectors, given.indices, given.levels, strict=True)):
        mean.update(DenseUpdate(vector), index, Report(k, level, samples=1, loss=0.0, flops=0.0))
    return mean.compute()


def copy(given: Uploads, target: Tensor) -> None:
    """Copy the minimal number of bytes: the vector of every client, and the size of the global model."""
    for vector in given.vectors:
        target[: vector.numel()].copy_(vector)
    target.copy_(given.vectors[0])  # a client of level a holds the whole model


def check(given: Uploads) -> None:
    """Compare with a mean over blocks that are NaN at entries that a client does not hold.

    Raises:
        RuntimeError: the means differ by more than 1e-6, or the numbers of holders differ.
    """
    delta, holders = holder_mean(HolderMean(), given)
    parts = [index_layout(index).views(vector) for index, vector in zip(given.indices, given.vectors, strict=True)]
    for name, tensor in given.tensors.items():
        filled = torch.full((len(parts), *tensor.shape), torch.nan)
        for block, part in zip(filled, parts, strict=True):
            block[tuple(slice(size) for size in part[name].shape)] = part[name]
        if not torch.allclose(delta[name], filled.nanmean(0).nan_to_num(), rtol=0, atol=1e-6):
            raise RuntimeError(f"Expected the mean over the holders for {name} but got another")
        if not torch.equal(holders[name], (~filled.isnan()).sum(0).to(holders[name])):
            raise RuntimeError(f"Expected the number of holders for {name} but got another")


def aggregation(given: Uploads, *, num_threads: int, blocks: int) -> list[Row]:
    """Check the mean, and return the times of the copy and of the mean."""
    check(given)
    target, mean = torch.empty_like(given.vectors[0]), HolderMean()
    with threads(num_threads):
        times = interleaved(
            {"copy of the same bytes": lambda: copy(given, target), "HolderMean": lambda: holder_mean(mean, given)},
            blocks=blocks,
        )
    plural = "s" if num_threads > 1 else ""
    return rows(f"aggregation, {len(given.vectors)} clients, {num_threads} thread{plural}", times)


def main() -> None:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--clients", type=int, default=10, help="number of uploads (default: %(default)s)")
    options.add_argument("--threads", type=int, default=1, help="torch's threads (default: %(default)s)")
    given = options.parse_args()
    report(aggregation(uploads(given.clients), num_threads=given.threads, blocks=given.blocks), given.json)


if __name__ == "__main__":
    main()
