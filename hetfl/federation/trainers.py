"""What a federated module asks of its trainer, its data and its net."""

from __future__ import annotations

from functools import cached_property

from lightning import Trainer
from torch import Tensor

from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError

PRECISIONS = ("32-true", "bf16-mixed", "64-true")
"""Lightning's precisions in which local steps need no gradient scaler, and deltas keep at least float32."""


def federated_data(trainer: Trainer) -> FederatedDataModule:
    """Return a trainer's data module.

    Raises:
        ConfigurationError: it is not a federated one.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, FederatedDataModule):
        raise ConfigurationError(f"Expected a hetfl.FederatedDataModule as datamodule but got {type(data).__name__}")
    return data


def check_precision(trainer: Trainer) -> None:
    """Refuse a trainer whose precision federated rounds cannot have.

    Raises:
        ConfigurationError: names the precisions that they can have.
    """
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
