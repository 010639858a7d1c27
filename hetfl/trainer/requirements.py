"""Requirements of a federated module on its trainer, its data and its net."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError
from hetfl.models.exits import exits_of
from hetfl.objectives import Objective
from hetfl.objectives.contract import check_results
from hetfl.tree import Tree

PRECISIONS = ("32-true", "bf16-mixed", "64-true")
"""Lightning's precisions that need no gradient scaler in local steps and keep deltas in at least float32."""
SECOND_FIT = (
    "This module has done {0} rounds and continues with round {0}, counted from 0: optimizers and the schedule of the "
    "learning rate start again"
)
"""The message of a second fit of a module."""
EVALUATED = {"validate": "limit_val_batches", "test": "limit_test_batches"}
"""The limit of the number of batches, by verb."""


def note_second_fit(version: int, epoch: int) -> None:
    """Say that a module's rounds go on counting where its first fit ended, if the trainer counts from 0 again."""
    if version != epoch:
        rank_zero_info(SECOND_FIT.format(version))


def federated_data(trainer: Trainer) -> FederatedDataModule:
    """Return the data module of a trainer.

    Raises:
        ConfigurationError: the data module is not a federated one.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, FederatedDataModule):
        raise ConfigurationError(f"Expected a hetfl.FederatedDataModule as datamodule but got {type(data).__name__}")
    return data


def known_data(module: LightningModule) -> FederatedDataModule | None:
    """Return the federated data module of the trainer of a module; None without a trainer or such a data module."""
    data = getattr(module._trainer, "datamodule", None)
    return data if isinstance(data, FederatedDataModule) else None


def is_double(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint has float64 weights."""
    return any(tensor.dtype == torch.float64 for tensor in checkpoint["state_dict"].values())


def itemsize(trainer: Trainer) -> int:
    """Return the bytes of an entry of the models in a run."""
    return 8 if trainer.precision == "64-true" else 4


def rounds_asked(trainer: Trainer, version: int) -> int:
    """Return the round before which training ends; a value below 0 means no end.

    It is ``max_epochs`` with a checkpoint, and otherwise ``version + max_epochs``, as a second fit adds rounds.

    Args:
        trainer: the trainer.
        version: number of rounds that the module has done.
    """
    rounds = -1 if trainer.max_epochs is None else trainer.max_epochs
    return rounds if rounds < 0 or trainer.ckpt_path else version + rounds


def check_trainer(trainer: Trainer, stage: str) -> None:
    """Refuse a trainer with an unsupported precision, or without anything to do.

    Raises:
        ConfigurationError: the precision or a limit is not supported.
    """
    check_limits(stage, trainer)
    if trainer.precision not in PRECISIONS:
        raise ConfigurationError(
            f"Expected precision in {PRECISIONS} but got {trainer.precision}: local steps have no gradient scaler, and "
            "their deltas need float32"
        )


def check_nets(
    inspect: Callable[..., dict[str, tuple[float, float]]],
    data: FederatedDataModule,
    objective: Objective,
    part: Callable[..., object] | None,
    predict: Callable[..., object],
    training: Callable[[str, Mapping[str, tuple[float, float]]], float],
) -> None:
    """Try the nets of all levels and the objective on the first samples of a client, and set the levels' FLOPs.

    Args:
        inspect: tries the nets; see :meth:`hetfl.levels.level_set.LevelSet.inspect`.
        data: the data.
        objective: gets the predictions of the largest level.
        part: returns the part of a level in a round; None: no check of nesting.
        predict: returns the prediction of the method for a net and inputs.
        training: returns the FLOPs of a sample in a step of the method at a level, given those of one pass.

    Raises:
        ConfigurationError: a net or the objective does not do what a run needs.
    """
    samples, targets = objective.trial(*data.first(4))
    shape, size = objective.output_shape(targets, data.num_classes), data.num_classes

    def check(outputs: Tensor, predicted: Callable[[Tree], Tensor]) -> None:
        check_results(objective, outputs, targets, size)
        objective.check_predictions(predicted, samples, targets)

    flops = inspect(samples, shape, part, predict, check, objective.noun(size))
    flops.update({level: (forward, training(level, dict(flops))) for level, (forward, _) in dict(flops).items()})


def check_one_exit(net: nn.Module, method: str) -> None:
    """Refuse a net with an exit per stage.

    Raises:
        ConfigurationError: the net declares exits.
    """
    exits = exits_of(net)
    if exits is not None:
        raise ConfigurationError(
            f"Expected a net with one exit for {method} but got {exits} exits from {type(net).__name__}: nets with an "
            "exit per stage are for hetfl.DepthFL"
        )


def check_limits(stage: str, trainer: Any) -> None:
    """Refuse a trainer whose limits allow no round or no batch of an evaluation.

    Args:
        stage: ``fit``, ``validate`` or ``test``.
        trainer: a trainer, or its settings under the same names.

    Raises:
        ConfigurationError: no round would be run, or no batch would be evaluated.
    """
    if stage == "fit":
        for name, meaning in (("max_epochs", "the number of rounds"), ("max_steps", "a limit of the rounds")):
            if getattr(trainer, name) == 0:
                raise ConfigurationError(f"Expected trainer.{name}, {meaning}, of at least 1 but got 0")
        limit = trainer.limit_train_batches
        if limit is not None and limit < 1:
            raise ConfigurationError(
                "Expected trainer.limit_train_batches of at least 1 or null, as a round is one batch, but got "
                f"{limit}: no round would be run"
            )
    elif stage in EVALUATED and getattr(trainer, EVALUATED[stage]) == 0:
        raise ConfigurationError(
            f"Expected trainer.{EVALUATED[stage]} above 0 or null for {stage} but got 0: nothing would be evaluated"
        )
