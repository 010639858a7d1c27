"""What a federated module asks of its trainer, its data and its net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import nn

from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError
from hetfl.models.exits import exits_of

PRECISIONS = ("32-true", "bf16-mixed", "64-true")
"""Lightning's precisions in which local steps need no gradient scaler, and deltas keep at least float32."""
SECOND_FIT = (
    "This module has {0} rounds behind it and goes on with round {0}, counted from 0: optimizers and the schedule of "
    "the learning rate begin anew"
)
"""What a second fit of a module says."""
EVALUATED = {"validate": "limit_val_batches", "test": "limit_test_batches"}
"""By verb, the limit that leaves it without a batch when it is 0."""


def federated_data(trainer: Trainer) -> FederatedDataModule:
    """Return a trainer's data module.

    Raises:
        ConfigurationError: it is not a federated one.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, FederatedDataModule):
        raise ConfigurationError(f"Expected a hetfl.FederatedDataModule as datamodule but got {type(data).__name__}")
    return data


def known_data(module: LightningModule) -> FederatedDataModule | None:
    """Return the federated data module of a module's trainer; None if there is none, or no trainer."""
    data = getattr(module._trainer, "datamodule", None)
    return data if isinstance(data, FederatedDataModule) else None


def is_double(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint's weights are of float64."""
    return any(tensor.dtype == torch.float64 for tensor in checkpoint["state_dict"].values())


def rounds_asked(trainer: Trainer, version: int) -> int:
    """Return up to which round training goes: in a second fit so many more; below 0: without end.

    Args:
        trainer: the trainer.
        version: rounds that the module has behind it.
    """
    rounds = -1 if trainer.max_epochs is None else trainer.max_epochs
    return rounds if rounds < 0 or trainer.ckpt_path else version + rounds


def check_trainer(trainer: Trainer, stage: str) -> None:
    """Refuse a trainer whose precision federated rounds cannot have, or that would do nothing.

    Raises:
        ConfigurationError: says what it should have.
    """
    check_limits(stage, trainer)
    if trainer.precision not in PRECISIONS:
        raise ConfigurationError(
            f"Expected precision in {PRECISIONS} but got {trainer.precision}: local steps have no gradient scaler, and "
            "their deltas need float32"
        )


def check_one_exit(net: nn.Module, method: str) -> None:
    """Refuse a net with an exit per stage.

    Raises:
        ConfigurationError: it declares exits.
    """
    exits = exits_of(net)
    if exits is not None:
        raise ConfigurationError(
            f"Expected a net with one exit for {method} but got {exits} exits from {type(net).__name__}: nets with an "
            "exit per stage are for hetfl.DepthFL"
        )


def check_limits(stage: str, trainer: Any) -> None:
    """Refuse a trainer that would do nothing: a round is one step of one batch.

    Args:
        stage: ``fit``, ``validate`` or ``test``.
        trainer: a trainer, or its settings under the same names.

    Raises:
        ConfigurationError: no round could begin, or no batch would be evaluated.
    """
    if stage == "fit":
        for name, meaning in (("max_epochs", "the number of rounds"), ("max_steps", "of which a round takes one")):
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
