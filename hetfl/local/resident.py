"""A net that stays in memory and is loaded with one client's sub-model after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop, Rprop

from hetfl.submodel import buffers_of, parameters_of, take
from hetfl.types import Index, Layout

ELEMENTWISE = (ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop)
"""Optimizers whose step treats every entry alone: they may see all parameters as one vector."""


class ResidentNet:
    """One level's net with its state as views of one flat vector: parameters first, then float buffers.

    Loading, the delta, clipping and the optimizer are then operations on single vectors, however many tensors the net
    has.

    Args:
        net: the level's net, already on its device and in its dtype; it is taken over.
        optimizer: makes the clients' optimizer.
    """

    def __init__(self, net: nn.Module, optimizer: Callable[[Iterable[Tensor]], Optimizer]) -> None:
        self.net = net
        parameters, buffers = parameters_of(net), buffers_of(net)
        self.layout = Layout.of({**parameters, **buffers})
        self.flat_D = torch.cat([t.detach().reshape(-1) for t in (*parameters.values(), *buffers.values())])
        self.anchor_D = torch.empty_like(self.flat_D)
        self._anchor_views = self.layout.views(self.anchor_D)
        self._adopt(parameters, buffers)
        self._make_optimizer(parameters, optimizer)
        self.loaded: tuple[int, int] | None = None

    def _adopt(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        views = self.layout.views(self.flat_D)
        for name, parameter in parameters.items():
            parameter.data = views[name]
        for name in buffers:
            owner, _, leaf = name.rpartition(".")
            self.net.get_submodule(owner)._buffers[leaf] = views[name]

    def _make_optimizer(self, parameters: Mapping[str, Tensor], make: Callable[[Iterable[Tensor]], Optimizer]) -> None:
        layout = Layout.of(parameters)
        self.vector = nn.Parameter(self.flat_D[: layout.size])
        self.vector.grad = torch.zeros_like(self.vector)
        for parameter, grad in zip(parameters.values(), layout.views(self.vector.grad).values(), strict=True):
            parameter.grad = grad
        self.optimizer = make([self.vector])
        if not isinstance(self.optimizer, ELEMENTWISE):
            self.optimizer = make(list(parameters.values()))

    @property
    def num_parameters(self) -> int:
        """Number of trainable entries; what follows them in the flat vector are buffers."""
        return self.vector.numel()

    @torch.no_grad()
    def anchor(self, tensors: Mapping[str, Tensor], index: Index, key: tuple[int, int]) -> None:
        """Read the sub-model out of the global tensors, once per ``key`` = (round, number of server steps)."""
        if self.loaded == key:
            return
        views = [take(tensors[name], index[name]) for name in self._anchor_views]
        torch._foreach_copy_(list(self._anchor_views.values()), views)
        self.loaded = key

    @torch.no_grad()
    def start(self, lr: float | None = None) -> None:
        """Begin a client: the net at the anchor, the optimizer as new, gradients zero."""
        self.flat_D.copy_(self.anchor_D)
        self.zero_grad()
        self.optimizer.state.clear()
        if lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr

    def zero_grad(self) -> None:
        """Set all gradients to zero, in place: they stay views of one vector."""
        assert self.vector.grad is not None
        self.vector.grad.zero_()

    @torch.no_grad()
    def delta(self) -> Tensor:
        """Return the state now minus the state at the anchor, shape (D,)."""
        return self.flat_D - self.anchor_D
