"""Questions to clients before a round: a few numbers that a client computes from its data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.tree import Tree


@dataclass(frozen=True)
class ClientView:
    """What a client computes an answer from.

    Attributes:
        batches: inputs of nets, without augmentation, and targets, of all samples that the client trains on, or of
            those that it holds out.
        classes: number K of classes.
        random: for random choices; a separate generator for each client and round.
        net: the client's part of the present global model, in training mode; None for questions without a model.
        held: bool, by name of the net's tensors: which entries the client's part holds; empty: all, or no model.
        gradient: returns the gradient of a loss of the net by its parameters, shape (D,).
    """

    batches: Iterable[tuple[Tree, Tensor]]
    classes: int
    random: torch.Generator
    net: nn.Module | None = None
    gradient: Callable[[Tensor], Tensor] | None = None
    held: Mapping[str, Tensor] = field(default_factory=dict)

    def outputs(self, inputs: Tree) -> Tensor:
        """Return the net's outputs, shape (N, K); of several exits, those of the deepest."""
        assert self.net is not None, "only a question that declares uses_model has a net"
        outputs: Tensor = self.net(inputs)
        return outputs[-1] if outputs.dim() == 3 else outputs

    def scores(self, inputs: Tree, targets: Tensor, user: str) -> Tensor:
        """Return the net's scores of classes, shape (N, K).

        Args:
            inputs: of the net.
            targets: one class per sample, int64, shape (N,).
            user: what needs the scores, for the message.

        Raises:
            ConfigurationError: the outputs have another shape, or targets are not classes.
        """
        outputs = self.outputs(inputs)
        if outputs.dim() != 2 or targets.dim() != 1 or targets.is_floating_point():
            raise ConfigurationError(
                f"Expected scores of classes (N, K) and one class for each sample, for {user}, but got outputs "
                f"{tuple(outputs.shape)} and targets of {targets.dtype} {tuple(targets.shape)}"
            )
        return outputs


class Question(ABC):
    """A function of a client's data with few numbers as its answer. Subclasses are frozen dataclasses."""

    uses_model: ClassVar[bool] = False
    """Whether a client needs its part of the present global model, and passes its samples through it."""

    backward: ClassVar[bool] = False
    """Whether this pass includes the backward pass."""

    held_out: ClassVar[bool] = False
    """Whether its batches are of the samples that the client holds out, and not of those that it trains on."""

    @property
    def passes(self) -> int:
        """How often a client passes its samples through the net, if it needs the model."""
        return 1

    @property
    @abstractmethod
    def size(self) -> int:
        """How many numbers an answer has."""

    @abstractmethod
    def answer(self, client: ClientView) -> Tensor:
        """Return the numbers, float64, shape (size,).

        Raises:
            ConfigurationError: it cannot be computed from such data.
        """

    def flops(self, samples: int, entries: int) -> float:
        """Return the floating-point operations beside those of the net.

        Args:
            samples: number of the client's samples.
            entries: numbers in the inputs of a sample.
        """
        return 0.0


class ClientProbe(Protocol):
    """Asks clients before a round trains; the round is charged for the answers."""

    @property
    def clients(self) -> Sequence[int]:
        """The ids of the reachable clients, ascending."""
        ...

    def answers(self, clients: Sequence[int], question: Question) -> dict[int, Tensor]:
        """Return by client the answers, float64, shape (size,); a client without a valid answer is left out."""
        ...
