"""The accuracy of a client's sub-model on samples that it holds out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.piece import Facts
from hetfl.question import ClientView, Question


@dataclass(frozen=True)
class HeldOutAccuracy(Question):
    """The share of a client's held-out samples that its part of the present global model classifies correctly."""

    uses_model: ClassVar[bool] = True
    held_out: ClassVar[bool] = True

    @property
    def size(self) -> int:  # noqa: D102
        return 1

    def answer(self, client: ClientView) -> Tensor:  # noqa: D102
        right, samples = 0, 0
        for inputs, targets in client.batches:
            outputs = client.scores(inputs, targets, "an accuracy on held-out samples")
            right, samples = right + int((outputs.argmax(1) == targets).sum()), samples + len(targets)
        return torch.tensor([right / samples if samples else torch.nan], dtype=torch.float64)


def with_held_out(facts: Facts, what: str) -> frozenset[int]:
    """Return the clients that hold samples out.

    Args:
        facts: of the federation.
        what: needs them, for the message.

    Raises:
        ConfigurationError: no client does.
    """
    clients = frozenset(client for client, samples in enumerate(facts.held_out) if samples)
    if not clients:
        raise ConfigurationError(
            f"Expected clients that hold samples out (data.client_val_fraction above 0) for {what}, which decides by "
            "the accuracy on them, but got none"
        )
    return clients
