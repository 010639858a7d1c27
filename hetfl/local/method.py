"""The methods that local training calls: the loss and the hooks around a client's steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from hetfl.objectives import Classification, Objective
from hetfl.tree import Tree
from hetfl.types import ClientContext

Batch = tuple[Tree, Tensor]
"""Inputs of the net, and targets."""

NEEDS_STEPS = ("local_loss", "before_client", "after_step", "after_client")
"""Hooks that are called for one client at a time: executors that train several clients at once refuse overrides."""


class LocalMethod(ABC):
    """The hooks of local training. They may change the client's net only; the method itself is read-only for them.

    Attributes:
        objective: loss, metrics and form of the targets.
    """

    objective: Objective = Classification()

    def restrict(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return logits (..., K) restricted to a client's ``labels`` (..., K), a mask; by default unchanged.

        A method that overrides it needs an objective whose outputs are scores of labels. Evaluations may call it in
        worker processes, as :meth:`predict_heads`.
        """
        return logits

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        """Return the mean loss of outputs, such as (N, K), and targets (N,); leading dimensions give one per client."""

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
        """Called before a client's first step; by default does nothing."""

    def after_step(self, net: nn.Module, ctx: ClientContext) -> None:
        """Called after each step of a client; by default does nothing."""

    def after_client(self, net: nn.Module, ctx: ClientContext) -> Mapping[str, float]:
        """Return extras for the client's report after its training; a piece must declare them. By default none."""
        return {}

    def predict_heads(self, net: nn.Module, inputs: Tree) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the outputs that an evaluation uses, and the outputs of single heads by name, of one forward pass.

        By default they are the net's outputs, and there are no heads. Evaluations may call it in worker processes, on
        some rows of a batch: outputs of a row must not depend on other rows, or on attributes of the method that change
        during a run, because a worker has the method as it was when the worker started.
        """
        return net(inputs), {}

    def training_flops(self, level: str, flops: Mapping[str, tuple[float, float]]) -> float:
        """Return the FLOPs that a client charges for one sample of a step; by default one forward and backward pass.

        Args:
            level: the client's level.
            flops: by level, those of one sample for a forward pass, and for forward and backward.
        """
        return flops[level][1]

    def steps_overridden(self) -> list[str]:
        """Return the names of the overridden hooks among :data:`NEEDS_STEPS`."""
        return [name for name in NEEDS_STEPS if getattr(type(self), name) is not getattr(LocalMethod, name)]
