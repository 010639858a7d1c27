"""What a federated module asks of its trainer, its data and its net."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from lightning import Trainer
from torch import Tensor

from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError

PRECISIONS = ("32-true", "bf16-mixed", "64-true")
"""Lightning's precisions in which local steps need no gradient scaler, and deltas keep at least float32."""
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


def forget_cached(part: object) -> None:
    """Forget the values of an object's cached properties."""
    for name in [name for name in vars(part) if isinstance(getattr(type(part), name, None), cached_property)]:
        delattr(part, name)


def of_one_exit(logits: Tensor, method: str) -> Tensor:
    """Return logits (N, K) as they are.

    Raises:
        ConfigurationError: they are of several exits.
    """
    if logits.dim() != 2:
        raise ConfigurationError(
            f"Expected a net with one exit, of logits (N, K), for {method} but got logits of shape "
            f"{tuple(logits.shape)}: nets with an exit per stage are for hetfl.DepthFL"
        )
    return logits


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
