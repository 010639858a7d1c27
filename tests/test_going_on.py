"""Resuming with changed settings: learning rates and numbers of rounds may change; other changes are refused."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from hetfl.aggregators import SampleMean
from hetfl.compression import ErrorFeedback, Identity, TopK
from hetfl.errors import ConfigurationError
from hetfl.fleet import Fixed
from hetfl.local import LocalTraining
from hetfl.runs.checkpoint import SafeCheckpointIO, SealedFile, previous
from hetfl.selection import Uniform
from hetfl.session.callbacks import LastCheckpoint
from tests.conftest import fit_in, small_module

Fit = Callable[..., Trainer]
Schedule = Callable[[Optimizer], LRScheduler]

SCHEDULES: dict[str, Schedule] = {
    "step": lambda o: StepLR(o, 2, 0.1),
    "cosine": lambda o: CosineAnnealingLR(o, T_max=6),
    "lambda": lambda o: LambdaLR(o, lambda round: 0.5**round),
    "sequential": lambda o: SequentialLR(o, [ConstantLR(o, 0.5, 2), ExponentialLR(o, 0.5)], [2]),
    "chained": lambda o: ChainedScheduler([ConstantLR(o, 0.5, 2), ExponentialLR(o, 0.5)]),
}


def local(
    lr: float, schedule: Schedule | None = None, optimizer: type[Optimizer] = SGD, **changes: Any
) -> LocalTraining:
    def make(parameters: Iterable[Tensor]) -> Optimizer:
        return optimizer(parameters, lr=lr)  # type: ignore[call-arg]

    return LocalTraining(optimizer=make, scheduler=schedule, **changes)


def rates(trainer: Trainer) -> list[float]:
    return list(pd.read_csv(Path(str(trainer.log_dir)) / "metrics.csv")["lr"])


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_a_resumed_run_has_the_same_bits_in_every_precision(fit: Fit, tmp_path: Path, precision: str) -> None:
    options: dict[str, Any] = {"precision": precision, "limit_val_batches": 0}
    whole, half, again = (small_module(uplink=ErrorFeedback(TopK(0.1))) for _ in range(3))
    fit(whole, rounds=3, name="whole", **options)
    fit(half, rounds=1, name="half", **options).save_checkpoint(tmp_path / "half.ckpt")
    fit(again, rounds=3, name="again", ckpt=str(tmp_path / "half.ckpt"), **options)
    one, two = whole.state_dict(), again.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert whole.uplink.norm() == again.uplink.norm()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_changed_learning_rate_scales_the_rest_of_the_schedule(fit: Fit, tmp_path: Path, schedule: str) -> None:
    def run(lr: float, rounds: int, name: str, ckpt: str | None = None) -> Trainer:
        module = small_module(local=local(lr, SCHEDULES[schedule]), selection=Uniform(1))
        return fit(module, rounds=rounds, name=name, ckpt=ckpt, limit_val_batches=0)

    path = tmp_path / "three.ckpt"
    whole = rates(run(0.08, 6, "whole"))
    run(0.08, 3, "three").save_checkpoint(path)
    for lr in (0.08, 0.02):
        again = run(lr, 6, f"again {lr}", str(path))
        assert rates(again) == pytest.approx([rate * lr / 0.08 for rate in whole[3:]], rel=1e-12)


def test_a_changed_learning_rate_scales_the_peak_of_a_cycle(fit: Fit, tmp_path: Path) -> None:
    def cycle(lr: float) -> LocalTraining:
        return local(lr, lambda o: OneCycleLR(o, max_lr=2 * lr, total_steps=8))

    path, options = tmp_path / "two.ckpt", {"limit_val_batches": 0}
    whole = rates(fit(small_module(local=cycle(0.1)), rounds=6, name="whole", **options))
    fit(small_module(local=cycle(0.1)), rounds=2, **options).save_checkpoint(path)
    again = fit(small_module(local=cycle(0.01)), rounds=6, name="again", ckpt=str(path), **options)
    assert rates(again) == pytest.approx([rate / 10 for rate in whole[2:]], rel=1e-12)


def server(lr: float, momentum: float = 0.0) -> Callable[[Iterable[Tensor]], Optimizer]:
    return lambda parameters: SGD(parameters, lr=lr, momentum=momentum)


def test_a_changed_server_learning_rate_is_used(fit: Fit, tmp_path: Path) -> None:
    path = tmp_path / "one.ckpt"
    fit(small_module(server_optimizer=server(1.0)), rounds=1).save_checkpoint(path)
    still = small_module(server_optimizer=server(0.0))
    trainer = fit(still, rounds=2, name="still", ckpt=str(path))
    before = torch.load(path, weights_only=True)["state_dict"]  # noqa: TID251
    assert all(torch.equal(still.state_dict()[name], tensor) for name, tensor in before.items())
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    moving = small_module(server_optimizer=server(0.5))  # also from a rate of 0 to a positive one
    fit(moving, rounds=3, name="moving", ckpt=str(tmp_path / "two.ckpt"))
    assert any(not torch.equal(moving.state_dict()[name], tensor) for name, tensor in before.items())


OTHERS: dict[str, dict[str, Any]] = {
    "selection": {"selection": Uniform(3)},
    "assignment": {"assignment": Fixed()},
    "local training": {"local": local(0.1, batch_size=20)},
    "client optimizer": {"local": local(0.1, optimizer=Adam)},
    "client schedule": {"local": local(0.1, SCHEDULES["step"])},
    "uplink": {"uplink": ErrorFeedback(Identity(), half_precision=True)},
    "aggregator": {"aggregator": SampleMean()},
    "server optimizer": {"server_optimizer": server(1.0, momentum=0.9)},
}


@pytest.fixture(scope="module")
def one_round(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the checkpoint of a run of one round."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("one_round")
    fit_in(folder)(small_module(local=local(0.1)), rounds=1).save_checkpoint(folder / "one.ckpt")
    return str(folder / "one.ckpt")


@pytest.mark.parametrize("name", OTHERS)
def test_other_changed_settings_are_refused_by_name(fit: Fit, one_round: str, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"checkpoint's {name} \\(") as error:
        fit(small_module(**{"local": local(0.1), **OTHERS[name]}), rounds=2, name="other", ckpt=one_round)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("one", "other"), [("cosine", 9), ("sequential", 5)])
def test_a_schedule_with_another_length_is_refused(fit: Fit, tmp_path: Path, one: str, other: int) -> None:
    longer: dict[str, Schedule] = {
        "cosine": lambda o: CosineAnnealingLR(o, T_max=other),
        "sequential": lambda o: SequentialLR(o, [ConstantLR(o, 0.5, other), ExponentialLR(o, 0.5)], [2]),
    }
    fit(small_module(local=local(0.1, SCHEDULES[one])), rounds=1).save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ConfigurationError, match="checkpoint's client schedule"):
        fit(small_module(local=local(0.1, longer[one])), rounds=2, name="b", ckpt=str(tmp_path / "one.ckpt"))


def write(path: Path, content: object) -> None:
    with path.open("wb") as file:
        sealed = SealedFile(file)
        torch.save(content, sealed)  # type: ignore[arg-type]
        sealed.seal()


def test_a_kill_after_a_fallback_keeps_the_complete_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, first = tmp_path / "last.ckpt", SafeCheckpointIO()
    for number in (0, 1):
        first.save_checkpoint({"number": number}, path)
    path.write_bytes(path.read_bytes()[:-1])
    again = SafeCheckpointIO()
    with pytest.warns(UserWarning, match="last.ckpt is damaged"):
        assert again.load_checkpoint(path)["number"] == 0
    replace, kill = os.replace, RuntimeError("killed")

    def killed(source: str, target: Path) -> None:
        if Path(target) == path:
            raise kill
        replace(source, target)

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", killed)
        with pytest.raises(RuntimeError, match="killed"):
            again.save_checkpoint({"number": 2}, path)
    with pytest.warns(UserWarning, match="last.ckpt is damaged"):
        assert SafeCheckpointIO().load_checkpoint(path)["number"] == 0
    again.save_checkpoint({"number": 3}, path)
    assert SafeCheckpointIO().load_checkpoint(path)["number"] == 3
    assert SafeCheckpointIO().load_checkpoint(previous(path, 1))["number"] == 0
    again.save_checkpoint({"number": 4}, path)
    assert SafeCheckpointIO().load_checkpoint(previous(path, 1))["number"] == 3


class Best(Callback):
    """A callback whose state no checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]:
        return {"best": np.float64(1.0)}


def test_an_unreadable_callback_state_is_refused_at_the_first_checkpoint(fit: Fit) -> None:
    options = {"plugins": [SafeCheckpointIO()], "enable_checkpointing": True}
    with pytest.raises(ConfigurationError, match="plain values and tensors .*callback") as error:
        fit(small_module(), rounds=2, callbacks=[LastCheckpoint(1.0), Best()], **options)
    assert "\n" not in str(error.value)


VERSION = {"pytorch-lightning_version": lightning.__version__}


@pytest.mark.parametrize("content", [[1], {"hetfl": {"fingerprint": {}}, **VERSION}, {"a": np.float64(1.0)}, VERSION])
def test_files_that_are_not_hetfl_checkpoints_are_refused_in_one_line(
    fit: Fit, tmp_path: Path, content: object
) -> None:
    write(tmp_path / "last.ckpt", content)
    with pytest.raises(ConfigurationError, match="^Expected ") as error:
        fit(small_module(), rounds=1, ckpt=str(tmp_path / "last.ckpt"), plugins=[SafeCheckpointIO()])
    assert "\n" not in str(error.value)


def test_the_sealed_files_of_these_tests_equal_real_checkpoints(tmp_path: Path) -> None:
    write(tmp_path / "a.ckpt", {"number": 1})
    SafeCheckpointIO().save_checkpoint({"number": 1}, tmp_path / "b.ckpt")
    loaded = [torch.load(io.BytesIO(path.read_bytes()), weights_only=True) for path in tmp_path.iterdir()]  # noqa: TID251
    assert loaded == [{"number": 1}] * 2
