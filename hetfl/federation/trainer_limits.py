"""Limits of the trainer under which nothing would be done, which Lightning takes for success."""

from __future__ import annotations

from typing import Any

from hetfl.errors import ConfigurationError

EVALUATED = {"validate": "limit_val_batches", "test": "limit_test_batches"}
"""By verb, the limit that leaves it without a batch when it is 0."""


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
