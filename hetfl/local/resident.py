"""A net that stays in memory and is loaded with the sub-models of clients in turn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop, Rprop

from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.local.penalty import Penalty
from hetfl.models.static_batch_norm import StaticBatchNorm2d
from hetfl.part import Part
from hetfl.submodel import frozen_of, parameters_of, state_of, take
from hetfl.types import Received

ELEMENTWISE = (ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop)
"""Optimizers whose step treats every entry separately, so that all parameters can be one vector."""


class ResidentNet:
    """One level's net, whose tensors are views of one flat vector: parameters, then float buffers.

    Loading, the delta, clipping and the optimizer are then operations on single vectors, for any number of tensors.
    Frozen parameters are not in the vector: they are the global model's own tensors, or views of what was received. So
    they take no memory, and have no gradient, no delta and no state of an optimizer.

    Args:
        net: the level's net, already on its device and in its dtype; its tensors are replaced in place.
        optimizer: makes the clients' optimizer.
        trains_all: whether entries that are not held are trained from zero.
    """

    def __init__(
        self, net: nn.Module, optimizer: Callable[[Iterable[Tensor]], Optimizer], trains_all: bool = False
    ) -> None:
        self.net, self.trains_all = net, trains_all
        self.frozen = frozen_of(net)
        tensors = {name: tensor for name, tensor in state_of(net).items() if name not in self.frozen}
        self.layout, self._fixed = Layout.of(tensors), Layout.of(self.frozen)
        self.flat_D = torch.cat([tensor.detach().reshape(-1) for tensor in tensors.values()])
        self.anchor_D = torch.empty_like(self.flat_D)
        self._anchor_views = self.layout.views(self.anchor_D)
        self._counters = _other_buffers(net, tensors)
        self._adopt(tensors)
        self._make_optimizer(parameters_of(net), optimizer)
        self._mask_D: Tensor | None = None
        self._trained_D: Tensor | None = None
        self._begun_D = self.anchor_D
        self._frozen_versions: list[int] = []
        self._first_state = {parameter: copy.deepcopy(state) for parameter, state in self.optimizer.state.items()}
        self.loaded: tuple[int, int, bytes] | None = None

    def _adopt(self, tensors: Mapping[str, Tensor]) -> None:
        for name, view in self.layout.views(self.flat_D).items():
            if isinstance(tensors[name], nn.Parameter):
                tensors[name].data = view
            else:
                owner, _, leaf = name.rpartition(".")
                self.net.get_submodule(owner)._buffers[leaf] = view

    def _make_optimizer(self, parameters: Mapping[str, Tensor], make: Callable[[Iterable[Tensor]], Optimizer]) -> None:
        self.trained = layout = Layout.of(parameters)
        self.vector = nn.Parameter(self.flat_D[: layout.size])
        self.vector.grad = torch.zeros_like(self.vector)
        self._parameters, self._grads = list(parameters.values()), list(layout.views(self.vector.grad).values())
        for parameter, grad in zip(self._parameters, self._grads, strict=True):
            parameter.grad = grad
        self.optimizer = make([self.vector])
        if type(self.optimizer) not in ELEMENTWISE:  # a subclass may look at whole tensors
            self.optimizer = make(self._parameters)
            return
        if self.optimizer.state:  # Adagrad makes its state at once, for the implementation that it chose: keep that
            return
        for group in self.optimizer.param_groups:
            # The fused implementation takes one pass over the vectors, torch's default up to six. A setting is kept.
            if group.get("fused", False) is None and not group["foreach"] and not group["differentiable"]:
                group["fused"] = True

    @torch.no_grad()
    def anchor(self, tensors: Mapping[str, Tensor], part: Part, values: tuple[int, int]) -> None:
        """Load the anchor with a part of global tensors, unless it already has this part of these values.

        Args:
            tensors: of a global model.
            part: the entries to load.
            values: number of the model, and a mark that changes whenever its values change.
        """
        key = (*values, part.key)
        if self.loaded == key:
            return
        views = [take(tensors[name], entry) for name, entry in part.items()]  # in the order of the net's tensors
        moving = len(self._anchor_views)
        torch._foreach_copy_(list(self._anchor_views.values()), views[:moving])
        self._fix(views[moving:])
        self.hold(part)
        self.loaded = key

    @torch.no_grad()
    def receive(self, received: Received, part: Part, values: tuple[int, int]) -> None:
        """Take a part's values as a client reads them, unless they were the last ones; see :meth:`anchor`."""
        key = (*values, part.key + received.key)
        if self.loaded != key:
            self.load(received.values_D, part)
            self.loaded = key

    @torch.no_grad()
    def load(self, values_D: Tensor, part: Part, base: Mapping[str, Tensor] | None = None) -> None:
        """Load the anchor and the frozen parameters.

        Args:
            values_D: of all entries of the part's index, shape (D,), of which the frozen parameters are then views.
            part: the part.
            base: global tensors to take the frozen parameters from, which ``values_D`` then does not have.
        """
        self.anchor_D.copy_(values_D[: self.layout.size])
        if base is None:
            self._fix(self._fixed.views(values_D[self.layout.size :].to(self.anchor_D)).values())
        else:
            frozen = list(part.items())[len(self._anchor_views) :]
            self._fix(take(base[name], entry) for name, entry in frozen)
        self.hold(part)

    def _fix(self, values: Iterable[Tensor]) -> None:
        """Let the frozen parameters be given tensors."""
        for parameter, value in zip(self.frozen.values(), values, strict=True):
            parameter.data = value
        self._frozen_versions = [parameter._version for parameter in self.frozen.values()]

    @torch.no_grad()
    def hold(self, part: Part) -> None:
        """Apply a part's mask to the anchor: entries that are not held become zero.

        They get no gradient, unless all entries are trained.
        """
        mask_D = part.mask_D
        if mask_D is not None:
            mask_D = mask_D.to(self.anchor_D.device)
            self.anchor_D.masked_fill_(~mask_D[: self.anchor_D.numel()], 0.0)
            mask_D = mask_D[: self.vector.numel()]
        self._mask_D = None if self.trains_all else mask_D

    def train_only(self, trained_D: Tensor | None) -> None:
        """Let some entries of the parameters be trained alone, bool (D,): the others keep their values bit for bit.

        None: all entries that are held are trained.
        """
        self._trained_D = trained_D

    @torch.no_grad()
    def start(self, lr: float | None = None, beyond_D: Tensor | None = None) -> None:
        """Begin a client: set the net to the anchor, and reset counters and the optimizer.

        Args:
            lr: learning rate; None: unchanged.
            beyond_D: the client's first values minus the anchor, shape (D,); None: zero.
        """
        self._begun_D = self.anchor_D if beyond_D is None else self.anchor_D + beyond_D
        self.flat_D.copy_(self._begun_D)
        for buffer, initial in self._counters:
            buffer.copy_(initial)
        self.optimizer.state.clear()
        for parameter, state in self._first_state.items():
            self.optimizer.state[parameter] = copy.deepcopy(state)
        if lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr

    def begun(self) -> dict[str, Tensor]:
        """Return by name the tensors that the present client began with."""
        moving = self._anchor_views if self._begun_D is self.anchor_D else self.layout.views(self._begun_D)
        return {**moving, **self.frozen}

    def backward(self, loss: Tensor) -> None:
        """Write a loss's gradient into ``vector.grad``; parameters that the loss does not depend on get zeros."""
        grads = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
        # A copy: loss.backward() would add to zeroed gradients, which reads and writes one vector more.
        torch._foreach_copy_(self._grads, grads)

    @torch.no_grad()
    def penalise(self, penalty: Penalty, memory_D: Tensor | None) -> None:
        """Add a penalty's gradient at the present parameters to ``vector.grad``; entries that are not held get zero."""
        assert self.vector.grad is not None
        begun_D = self._begun_D[: self.vector.numel()]
        penalty.add_gradient(self.vector.grad, self.vector, begun_D, memory_D, self.trained)
        if self._mask_D is not None:
            self.vector.grad.mul_(self._mask_D)
        if self._trained_D is not None:
            self.vector.grad.mul_(self._trained_D)

    @torch.no_grad()
    def step(self, penalty: Penalty, lr: float) -> None:
        """Take a step of the optimizer, and let the penalty change the parameters after it."""
        self.optimizer.step()
        penalty.after_step(self.vector, lr, self.trained)
        if self._trained_D is not None:  # weight decay would move entries without a gradient
            self.vector.copy_(torch.where(self._trained_D, self.vector, self._begun_D[: self.vector.numel()]))

    @torch.no_grad()
    def finish(self) -> Tensor:
        """End a client; return the state now minus the state at the anchor, shape (D,), without frozen parameters.

        Raises:
            ConfigurationError: a hook of the method has changed a frozen parameter, which is the global model's.
        """
        for (name, parameter), version in zip(self.frozen.items(), self._frozen_versions, strict=True):
            if parameter._version != version:
                raise ConfigurationError(
                    f"Expected hooks of local training that change trained parameters alone but got another {name!r}, "
                    "which is frozen: look at requires_grad"
                )
        # Free the optimizer's state now. A momentum that stays until the next client begins would get a new address in
        # every round, and small tensors between these addresses would fragment the heap.
        self.optimizer.state.clear()
        return self.flat_D - self.anchor_D


def _other_buffers(net: nn.Module, tensors: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the buffers that are not sent, with their initial values, which every client begins with.

    Static batch norm's statistics are left out: they are loaded for evaluation only.
    """
    static = {id(b) for layer in net.modules() if isinstance(layer, StaticBatchNorm2d) for b in (layer.mean, layer.var)}
    others = (buffer for name, buffer in net.named_buffers() if name not in tensors and id(buffer) not in static)
    return [(buffer, buffer.clone()) for buffer in others]
