"""Checks that executors, compressors and aggregators compute on a device what they compute on the CPU, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import torch
from round import Federation
from timing import double_precision
from torch import Tensor, nn
from work import Setting

from hetfl import aggregators, compression
from hetfl.aggregators import Aggregator
from hetfl.aggregators.stacked_products import Target
from hetfl.compression import Compressor, ErrorFeedback, TopK
from hetfl.compression.base import Context
from hetfl.local import Auto, DefaultExecutor, Executor, Sequential, Stacked
from hetfl.local.auto.by_level import ByLevel
from hetfl.local.by_shape import ByShape
from hetfl.part import Part
from hetfl.piece import Facts
from hetfl.testing.aggregators import SHAPES, Cohort, cohort
from hetfl.testing.compressors import LAYOUTS
from hetfl.testing.rules import random
from hetfl.updates import DenseUpdate, SparseUpdate, Update

SMALL = Setting("be", clients=8, cohort=4, samples=11, batch_size=5, epochs=2, hidden=(16, 32), size=8)
MOST = 1e-8
"""Largest difference, relative to the largest value, that counts as rounding in float64."""

EXECUTORS: dict[str, Callable[[], Executor]] = {
    "Sequential": Sequential,
    "Stacked": Stacked,
    "Auto": partial(Auto, num_workers=1),
    "ByLevel": partial(ByLevel, {"b": 2, "e": 0}),
    "ByShape": partial(ByShape, 2),
    "DefaultExecutor": DefaultExecutor,
}
"""Executors of one process; Workers refuses a model on a GPU."""

COMPRESSORS: dict[str, Callable[[], Compressor]] = {
    "Identity": compression.Identity,
    "AdaptiveDensity": partial(compression.AdaptiveDensity, seconds=2.0, default_uplink=60.0),
    "Chain": lambda: compression.Chain(TopK(0.2), compression.LogQuantizer(bits=3)),
    "ChannelThreshold": partial(compression.ChannelThreshold, density=0.3),
    "DynamicRange": partial(compression.DynamicRange, bits=8, bucket=16),
    "FixedPoint": partial(compression.FixedPoint, bits=12, fraction_bits=8, stochastic=True),
    "GammaFedHT": partial(compression.GammaFedHT, density=0.1, reference_lr=0.1, final_lr=0.01),
    "HardThreshold": partial(compression.HardThreshold, threshold=0.5),
    "LogQuantizer": partial(compression.LogQuantizer, bits=5, bucket=16, span=1e3, stochastic=True),
    "LowRank": partial(compression.LowRank, rank=1, min_reduction=1.0),
    "RandomK": partial(compression.RandomK, density=0.1),
    "SignEF": compression.SignEF,
    "StochasticQuantizer": partial(compression.StochasticQuantizer, bits=4, bucket=16),
    "TopK": partial(TopK, 0.1),
}

AGGREGATORS: dict[str, Callable[[], Aggregator]] = {
    "ClippedMean": aggregators.ClippedMean,
    "CoordinateMedian": aggregators.CoordinateMedian,
    "CoordinateMedian, one holder": partial(aggregators.CoordinateMedian, 1),
    "FLTrust": aggregators.FLTrust,
    "FedNova": aggregators.FedNova,
    "HolderMean": aggregators.HolderMean,
    "HolderMean, cohort": partial(aggregators.HolderMean, denominator="cohort"),
    "MultiKrum": aggregators.MultiKrum,
    "ProductMean": aggregators.ProductMean,
    "QFedAvg": aggregators.QFedAvg,
    "SampleMean": aggregators.SampleMean,
    "SelectionMean": aggregators.SelectionMean,
    "StackedProducts": partial(aggregators.StackedProducts, {"layer": Target("layer.weight", 0.5)}),
    "TrimmedMean": partial(aggregators.TrimmedMean, 0.3, 2),
    "ValueFilter": aggregators.ValueFilter,
    "ValueMean": aggregators.ValueMean,
    "ZeroPadMean": aggregators.ZeroPadMean,
    "ZeroPadMean, products": partial(aggregators.ZeroPadMean, "products"),
}

FROZEN, BUFFER = "layer.weight", "running_mean"
GLOBAL = {**SHAPES, "layer.lora_A": (3, 4), "layer.lora_B": (5, 3), FROZEN: (5, 4)}
"""Shapes of the global tensors of aggregators: SHAPES, the factors of an adapter, and its frozen weight."""


@dataclass(frozen=True)
class Check:
    """A comparison of a device with the CPU.

    Attributes:
        kind: executor, compressor or aggregator.
        name: what was compared.
        difference: the largest difference, relative to the largest value.
    """

    kind: str
    name: str
    difference: float

    @property
    def passed(self) -> bool:
        """Whether the difference is one of rounding; NaN is not."""
        return self.difference <= MOST


def checks(device: str) -> list[Check]:
    """Return the comparisons of all executors, compressors and aggregators."""
    with double_precision():
        results = [Check("executor", name, _executor(make, device)) for name, make in EXECUTORS.items()]
        results += [Check("compressor", name, _compressor(make, device)) for name, make in COMPRESSORS.items()]
        results += [Check("aggregator", name, _aggregator(make, device)) for name, make in AGGREGATORS.items()]
    return results


def _difference(got: list[Tensor], expected: list[Tensor]) -> float:
    pairs = [(one.detach().cpu(), two) for one, two in zip(got, expected, strict=True) if two.numel()]
    largest = max(float(two.abs().max()) for _, two in pairs)
    return max(float((one - two).abs().max()) for one, two in pairs) / (largest or 1.0)


def _executor(make: Callable[[], Executor], device: str) -> float:
    """Compare the models after two whole rounds with those of Sequential on the CPU."""

    def after(executor: Executor, device: str) -> list[Tensor]:
        feedback = ErrorFeedback(TopK(0.1))
        with closing(Federation(SMALL, SMALL.data(), executor, feedback, device=device)) as federation:
            for number in range(2):
                list(federation.whole_round(number))
            return [tensor.detach().clone() for tensor in federation.models.tensors[0].values()]

    return _difference(after(make(), device), after(Sequential(), "cpu"))


def _compressor(make: Callable[[], Compressor], device: str) -> float:
    """Compare the decoded update of a vector."""
    vector_D, start_D = (torch.randn(1000, generator=random(seed), dtype=torch.float64) for seed in (0, 1))

    def dense(device: str) -> Tensor:
        context = Context(0.1, LAYOUTS[1000], None, random(0), start=lambda: start_D.to(device))
        return make().compress_in(vector_D.to(device), context).to_dense()

    return _difference([dense(device)], [dense("cpu")])


def _aggregator(make: Callable[[], Aggregator], device: str) -> float:
    """Compare steps and holders, without and with masks, with dense and sparse updates on the CPU and on the device."""
    largest = 0.0
    for masks in (False, True):
        for sparse in (False, True) if make().takes_sparse else (False,):
            expected = played(make, global_tensors("cpu"), updates(masks, sparse))
            for place in dict.fromkeys(("cpu", device)):
                got = played(make, global_tensors(device), moved(updates(masks, sparse), place))
                for ours, theirs in zip(got, expected, strict=True):
                    difference = _difference([ours[name] for name in GLOBAL], [theirs[name] for name in GLOBAL])
                    largest = max(largest, difference)
    return largest


def global_tensors(device: str | torch.device) -> dict[str, Tensor]:
    """Return random global tensors: parameters, a frozen one, and a buffer."""
    tensors: dict[str, Tensor] = {}
    for name, shape in GLOBAL.items():
        value = torch.randn(shape, generator=random(len(name)), dtype=torch.float64).to(device)
        tensors[name] = value if name == BUFFER else nn.Parameter(value, requires_grad=name != FROZEN)
    return tensors


def updates(masks: bool, sparse: bool) -> Cohort:
    """Return updates of clients with leading blocks, positions or masks, and factors of several ranks."""
    taken: Cohort = []
    for client, (_, part, report) in enumerate(cohort(0, masks)):
        rank = 1 + client % 3
        index = {name: entry for name, entry in part.items() if name != BUFFER}
        index |= {"layer.lora_A": (slice(0, rank), slice(0, 4)), "layer.lora_B": (slice(0, 5), slice(0, rank))}
        mask_D = part.mask_D
        if mask_D is not None:
            mask_D = torch.cat([mask_D[:-2], torch.ones(9 * rank, dtype=torch.bool), mask_D[-2:]])
        wide = Part({**index, BUFFER: part[BUFFER]}, mask_D)
        values = torch.randn(wide.size, generator=random(client), dtype=torch.float64)
        update: Update = DenseUpdate(values[:-2], exact=values[-2:])
        if sparse:
            indices = torch.arange(client % 2, len(update.values), 2)
            update = SparseUpdate(update.values[indices], indices, len(update.values), exact=update.exact)
        taken.append((update, wide, report))
    return taken


def moved(taken: Cohort, device: str | torch.device) -> Cohort:
    """Return updates on a device."""
    result: Cohort = []
    for update, part, report in taken:
        there = replace(update, values=update.values.to(device), exact=update.exact.to(device))
        if isinstance(there, SparseUpdate):
            there = replace(there, indices=there.indices.to(device))
        result.append((there, part, report))
    return result


def played(make: Callable[[], Aggregator], tensors: dict[str, Tensor], taken: Cohort) -> list[Mapping[str, Tensor]]:
    """Return steps and holders of the second of two rounds."""
    aggregator, step = make(), {name: 0.1 * tensor.detach() for name, tensor in tensors.items()}
    parameters = {name: tensors[name] for name in tensors if name not in (FROZEN, BUFFER)}
    facts = Facts((3, 4, 5, 6), levels=("a",), rounds=2, parameters=parameters, frozen={FROZEN: tensors[FROZEN]})
    aggregator.setup(replace(facts, server_training=lambda *_: step))
    for round in range(2):
        aggregator.begin_round(round, 0.1)
        aggregator.reset(tensors)
        for update, part, report in taken:
            aggregator.update(update, part, report)
        both = aggregator.compute()
        aggregator.end_round(round)
    return list(both)
