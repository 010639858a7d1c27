"""``levels.csv`` against the charges of a run, the clients that can train a level, and the cost of statistics."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Trainer

from hetfl import DepthFL, FederatedModule, HeteroFL, Level
from hetfl.compression import ErrorFeedback, Identity
from hetfl.data import IID
from hetfl.fleet import Fixed
from hetfl.levels.budgets import Budgets
from hetfl.levels.level_set import LevelSet
from hetfl.levels.table import UploadSize
from hetfl.models import ConvNet, MultiExitConvNet
from hetfl.selection import Everyone, Uniform
from hetfl.submodel import put
from hetfl.updates import SparseUpdate
from hetfl.wire import dense_size, encode
from tests.conftest import small_data, small_levels, small_module

Fit = Callable[..., Trainer]
COLUMNS = [
    "level",
    "width",
    "depth",
    "density",
    "rank",
    "parameters",
    "forward_flops",
    "training_flops",
    "down_bytes",
    "up_bytes",
]
NET = partial(MultiExitConvNet, hidden=(8, 16))
CROSSED = {"a": Level("a", depth=2), "b": Level("b", 0.5, 2), "c": Level("c", 1.0, 1), "d": Level("d", 0.5, 1)}
"""Neither of levels b and c contains the other."""


def table_of(trainer: Trainer, name: str) -> pd.DataFrame:
    return pd.read_csv(Path(str(trainer.logger.save_dir)) / f"{name}.csv")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (HeteroFL, {}),
        (HeteroFL, {"net": lambda *, width=1.0: ConvNet(hidden=(8, 16), norm="batch", width=width)}),
        (HeteroFL, {"levels": Budgets("params", [1.0, 0.5, 0.2])}),
        (DepthFL, {"net": NET, "levels": CROSSED}),
        (DepthFL, {"net": NET, "levels": CROSSED, "distillation": False, "deepest_only": True}),
    ],
)
def test_the_level_table_equals_the_charges_of_a_round(
    fit: Fit, kind: type[FederatedModule], changes: dict[str, Any]
) -> None:
    data = small_data(partitioner=IID())
    module = small_module(kind, selection=Uniform(8), uplink=ErrorFeedback(Identity()), **changes)
    trainer = fit(module, data, rounds=1, limit_val_batches=0)
    table = table_of(trainer, "levels")
    assert table.columns.tolist() == COLUMNS
    assert table["level"].tolist() == list(module.levels)
    assert table["width"].tolist() == [level.width for level in module.levels.values()]
    rows = table.set_index("level")
    cohort = [
        (client, module.assignment.levels(0)[client])
        for client in module.selection.select(0, Everyone(len(module.selection.sizes)))
    ]
    assert len({level for _, level in cohort}) > 1
    metrics = table_of(trainer, "metrics").iloc[0]
    assert metrics["comm/down_bytes"] == sum(rows["down_bytes"][level] for _, level in cohort)
    assert metrics["comm/up_bytes"] == sum(rows["up_bytes"][level] for _, level in cohort)
    flops = sum(rows["training_flops"][level] * data.sizes[client] for client, level in cohort)
    assert metrics["compute/flops_total"] == pytest.approx(flops, rel=1e-12)
    for name in module.levels:
        net = module.submodel(name)
        assert rows["parameters"][name] == sum(p.numel() for p in net.parameters())


def test_expected_bytes_equal_the_mean_of_encoded_sizes() -> None:
    size, random = 20_000, torch.Generator().manual_seed(0)
    for density, half in ((0.5, False), (0.05, True), (0.005, False), (0.0005, False)):
        lengths = []
        for _ in range(20):
            indices = (torch.rand(size, generator=random) < density).nonzero().squeeze(1)
            update = SparseUpdate(torch.ones(len(indices)), indices, size, exact=torch.ones(7))
            lengths.append(len(encode(update, round=0, client=0, half_precision=half)))
        expected = UploadSize(size, 7).sparse(density, 2 if half else 4)
        assert expected == pytest.approx(sum(lengths) / 20, rel=0.1)
    assert UploadSize(size, 7).dense() == dense_size(size + 7)


def held(levels: LevelSet, name: str) -> set[tuple[str, int]]:
    """Return every entry of the global model that a level holds."""
    entries = set()
    for tensor, parameter in levels.net.named_parameters():
        if tensor in levels.indices[name]:
            mask = torch.zeros_like(parameter, requires_grad=False)
            put(mask, levels.indices[name][tensor], torch.ones(levels.build(name).get_parameter(tensor).shape))
            entries |= {(tensor, position) for position in mask.flatten().nonzero().squeeze(1).tolist()}
    return entries


def test_a_level_affords_exactly_the_levels_that_it_contains() -> None:
    sizes = itertools.product((1.0, 0.5, 0.25), (3, 2, 1))
    levels = {f"w{width}-d{depth}".replace(".", ""): Level("", width, depth) for width, depth in sizes}
    level_set = LevelSet(partial(MultiExitConvNet, hidden=(4, 4, 8)), levels, seed=0)
    entries = {name: held(level_set, name) for name in level_set}
    smaller = 0
    for has, level in itertools.product(level_set, repeat=2):
        assert level_set.affords(has, level) == (entries[level] <= entries[has])
        smaller += level_set.sizes[level] <= level_set.sizes[has] and not level_set.affords(has, level)
    assert smaller > 3


@pytest.mark.parametrize("levels", [CROSSED, {"a": Level("a", depth=2), "b": Level("b", depth=1)}])
def test_a_client_downloads_every_level_that_its_other_levels_do_not_contain(levels: dict[str, Level]) -> None:
    module = small_module(DepthFL, net=NET, levels=levels, assignment=Fixed(), statistics_clients=None)
    plain = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    plain.validate(module, datamodule=small_data(), verbose=False)
    entries = {name: held(module.levels, name) for name in levels}
    total = 0
    for has in module.assignment.levels(0):
        able = [name for name in levels if entries[name] <= entries[has]]
        largest = [name for name in able if not any(entries[name] < entries[other] for other in able)]
        total += sum(dense_size(len(entries[name])) for name in largest)
    assert module.ledger.total.down_bytes == total


@pytest.mark.filterwarnings("ignore:No client can run level a")
def test_clients_are_not_asked_for_statistics_of_a_level_that_they_do_not_contain(fit: Fit) -> None:
    """Level c is smaller than b, but a fleet with levels b and d only cannot gather its statistics."""
    assert len(held(LevelSet(NET, CROSSED, 0), "c")) < len(held(LevelSet(NET, CROSSED, 0), "b"))
    with pytest.warns(UserWarning, match="No client can run level c"):
        fit(small_module(DepthFL, net=NET, levels=CROSSED, assignment=Fixed({"b": 1, "d": 1})), rounds=1)


def test_a_resumed_run_rewrites_the_level_table(fit: Fit) -> None:
    trainer = fit(small_module(), rounds=1)
    path = Path(str(trainer.logger.save_dir)) / "levels.csv"  # type: ignore[union-attr]
    before = path.read_bytes()
    path.unlink()
    fit(small_module(levels=small_levels(1.0, 0.5, 0.25)), rounds=2, logger=trainer.logger)
    assert path.read_bytes() == before
