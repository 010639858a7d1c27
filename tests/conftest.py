"""Small federations that tests train in seconds."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jsonargparse._common
import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.optim import SGD

from hetfl import FederatedModule, HeteroFL, Level
from hetfl.data import Digits, Dirichlet, FederatedDataModule
from hetfl.local import LocalTraining, Sequential
from hetfl.models import ConvNet
from hetfl.runs import RunFolder
from hetfl.selection import Uniform
from tests.slow_cases import mark_slow

# Tests train on the CPU in worker processes, also on a machine with a GPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Timing depends on the load of the machine: neither an example nor its generation has a time limit.
hypothesis.settings.register_profile("hetfl", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("hetfl")


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests as slow."""
    mark_slow(items, config.args)


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    """Import the test modules without garbage collections, which would look at all that is imported again and again."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Freeze the million objects of the test modules and their imports: a full collection would take half a second."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Unfreeze all objects, so that the end of the process frees them: nanobind prints what is left."""
    gc.unfreeze()


@pytest.fixture
def _frozen_again() -> Iterator[None]:
    """Freeze all objects after a test that unfreezes them."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Use one thread: threads on tiny tensors only wait, and their number would change the summation order."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _imports_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo import restrictions: a command with HETFL_TRUSTED restricts the imports of its whole process."""
    for name, value in jsonargparse._common.parsing_settings.items():
        monkeypatch.setitem(jsonargparse._common.parsing_settings, name, value)
    monkeypatch.delenv("HETFL_TRUSTED", raising=False)


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Make float64 the default dtype: executors agree up to rounding, and float32 is too coarse to compare them."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def small_net(*, width: float = 1.0, norm: str = "static_batch") -> nn.Module:
    """Return HeteroFL's CNN with two small blocks."""
    return ConvNet(hidden=(8, 16), norm=norm, width=width)  # type: ignore[arg-type]


def small_levels(*widths: float) -> dict[str, Level]:
    """Return levels a, b, ... of the given widths."""
    return {name: Level(name, width) for name, width in zip("abcdefgh", widths, strict=False)}


def small_module(kind: type[FederatedModule] = HeteroFL, **changes: Any) -> FederatedModule:
    """Return a module over Digits that trains in milliseconds; keyword arguments replace its defaults."""
    arguments: dict[str, Any] = {
        "net": small_net,
        "levels": small_levels(1.0, 0.5, 0.25),
        "selection": Uniform(4),
        "statistics_clients": 3,
        "executor": Sequential(),  # starting processes takes longer than training
        "local": LocalTraining(
            epochs=1,
            batch_size=20,
            gradient_clip=1.0,
            optimizer=lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
        ),
    }
    return kind(**{**arguments, **changes})


def small_data(**changes: Any) -> FederatedDataModule:
    """Return half of Digits over 12 clients, Dirichlet with β = 0.5."""
    arguments: dict[str, Any] = {"num_clients": 12, "partitioner": Dirichlet(0.5), "val_fraction": 0.5}
    return Digits(**{**arguments, **changes})


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Trainer]:
    """Return a function that trains a module for some rounds in a new run folder."""
    return fit_in(tmp_path)


def fit_in(folder: Path) -> Callable[..., Trainer]:
    """Return a function that trains a module for some rounds in a run folder below ``folder``."""

    def run(
        module: FederatedModule,
        data: FederatedDataModule | None = None,
        rounds: int = 3,
        name: str = "run",
        ckpt: str | None = None,
        **options: Any,
    ) -> Trainer:
        settings: dict[str, Any] = {
            "max_epochs": rounds,
            "accelerator": "cpu",
            "logger": RunFolder(str(folder), name),
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
        }
        trainer = Trainer(**{**settings, **options})
        trainer.fit(module, datamodule=data or small_data(), ckpt_path=ckpt, weights_only=True)
        return trainer

    return run
