"""What a method says of a client's local training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from hetfl.objectives import Classification, Objective
from hetfl.tree import Tree
from hetfl.types import ClientContext

Batch = tuple[Tree, Tensor]
"""Inputs, as the net takes them, and targets."""

NEEDS_STEPS = ("local_loss", "before_client", "after_step", "after_client")
"""What is called client by client: executors that train several clients at once refuse methods that override it."""


class LocalMethod(ABC):
    """The seams of local training. They read the method; what they change is the client's net alone.

    Attributes:
        objective: what the targets are.
    """

    objective: Objective = Classification()

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        """Return the loss of outputs (N, K) and targets (N,), say; with leading client dimensions, one loss each."""

    def local_loss(self, net: nn.Module, batch: Batch, ctx: ClientContext) -> Tensor:
        """Return the loss whose gradient a client's step follows: by default :meth:`loss` of the net's outputs.

        Args:
            net: the client's net, in training mode.
            batch: inputs and targets of the step.
            ctx: the client, its level, round, step, learning rate, generator and anchor; ``ctx.narrowed(level)`` calls
                the net at a smaller level.
        """
        inputs, targets = batch
        return self.loss(net(inputs), targets, ctx)

    def before_client(self, net: nn.Module, ctx: ClientContext) -> None:
        """Do something before a client's first step; by default nothing."""

    def after_step(self, net: nn.Module, ctx: ClientContext) -> None:
        """Do something after each of a client's steps; by default nothing."""

    def after_client(self, net: nn.Module, ctx: ClientContext) -> Mapping[str, float]:
        """Return extras for the client's report, once it has trained; a piece must declare them. By default none."""
        return {}

    def steps_overridden(self) -> list[str]:
        """Return what of the seams that are called client by client a method overrides."""
        return [name for name in NEEDS_STEPS if getattr(type(self), name) is not getattr(LocalMethod, name)]
