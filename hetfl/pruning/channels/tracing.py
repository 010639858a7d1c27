"""Records the calls of a net's layers, and finds which positions of their inputs depend on which of their outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.local.nesting import run
from hetfl.submodel import state_of
from hetfl.tree import Tree

OUTPUT = -1
"""In place of an argument's number, for the output of a layer."""

END = -1
"""In place of a call's number, for the outputs of the net."""

Vertex = tuple[Any, ...]
"""A dimension: (name, dim) of a tensor, or (call, argument, dim) of what a call of a layer takes or returns."""

LISTS = (nn.ParameterList, nn.ParameterDict)
PROBED = 1
"""The position that is changed. Most reorderings of positions move it; position 0 often stays where it is."""


@dataclass(frozen=True)
class Call:
    """A call of a layer.

    Attributes:
        layer: the layer.
        inputs: copies of the arguments that are float tensors.
        outputs: what it returned; the first tensor is a copy.
        axis: the dimension of the output in which a change of one entry of the layer's vectors shows; -1: none.
    """

    layer: nn.Module
    inputs: list[Tensor]
    outputs: Any
    axis: int

    @property
    def output(self) -> Tensor:
        """The first tensor that the layer returned."""
        first: Tensor = self.outputs[0] if isinstance(self.outputs, tuple) else self.outputs
        return first

    def returned(self, output: Tensor) -> Any:
        """Return what the layer returned, with another first tensor."""
        return (output, *self.outputs[1:]) if isinstance(self.outputs, tuple) else output


class Trace:
    """The calls of a net's layers, and the reach of each dimension: where the next layers read its positions.

    A layer is a module that has tensors, while the modules in it have none. In the first run the layers compute. In all
    other runs they return what they returned in the first, so that only what lies between layers is computed. If one
    position of a layer's output is changed, the changes before the next layers show where they read it.

    Args:
        net: a net in float64, in which the layers are replaced.
        inputs_N: a few samples.

    Raises:
        ConfigurationError: from :meth:`reached`: the order of the calls depends on values.

    Attributes:
        tensors: the net's tensors by name.
        calls: the calls of its layers in order.
    """

    def __init__(self, net: nn.Module, inputs_N: Tree) -> None:
        self.tensors, self.calls = state_of(net), list[Call]()
        self._names = {id(tensor): name for name, tensor in self.tensors.items()}
        self._net, self._inputs, self._computes = net, inputs_N, True
        self._next, self._at, self._changed = 0, END, torch.empty(0)  # of the present run
        self._read: list[tuple[int, int, Tensor]] = []
        for module in net.modules():
            if self._is_layer(module):
                module.forward = partial(self._call, module, module.forward)
        with torch.no_grad():
            self._outputs = run(net, inputs_N)
        self._computes = False

    def own(self, module: nn.Module) -> dict[str, Tensor]:
        """Return by name a module's own tensors, those in its lists of parameters included."""
        holders = [module, *(child for child in module.children() if isinstance(child, LISTS))]
        each = [t for holder in holders for t in (*holder._parameters.values(), *holder._buffers.values())]
        return {self._names[id(tensor)]: tensor for tensor in each if tensor is not None and id(tensor) in self._names}

    def _is_layer(self, module: nn.Module) -> bool:
        if isinstance(module, LISTS) or all(tensor.numel() == 1 for tensor in self.own(module).values()):
            return False
        inner = [each for each in module.modules() if each is not module and not isinstance(each, LISTS)]
        return not any(self.own(each) for each in inner)

    def _call(self, layer: nn.Module, forward: Any, *arguments: Any, **named: Any) -> Any:
        given = [a for a in (*arguments, *named.values()) if isinstance(a, Tensor) and a.is_floating_point()]
        if self._computes:
            copies, outputs = [tensor.clone() for tensor in given], forward(*arguments, **named)
            call = Call(layer, copies, outputs, self._axis(layer, partial(forward, *arguments, **named), outputs))
            self.calls.append(Call(layer, copies, call.returned(call.output.clone()), call.axis))
            return outputs
        number, self._next = self._next, self._next + 1
        if number >= len(self.calls) or self.calls[number].layer is not layer:
            raise ConfigurationError(
                f"Expected a net that calls its layers in one order, to find its groups of channels, but got "
                f"{type(layer).__name__} in another place after a change of values"
            )
        call = self.calls[number]
        for argument, pair in enumerate(zip(given, call.inputs, strict=True) if number > self._at else ()):
            if not torch.equal(*pair) and (changed := differs(*pair)).any():
                self._read.append((number, argument, changed))
        return call.returned(self._changed if number == self._at else call.output.clone())

    def _axis(self, layer: nn.Module, forward: Any, outputs: Any) -> int:
        """Return the dimension in which a change of an entry shows, if a layer's tensors are vectors of one size."""
        own = list(self.own(layer).values())
        (size, *others) = {tensor.shape for tensor in own}
        if others or len(size) != 1 or size[0] == 1 or not isinstance(outputs, Tensor):
            return -1
        before = own[0].detach().clone()
        own[0].detach()[PROBED] += 1
        changed = differs(forward(), outputs)
        own[0].detach().copy_(before)
        return slab(changed, size[0]) if changed.any() else -1

    def reached(self, source: Vertex) -> Iterator[tuple[int, int, Tensor]]:
        """Yield where a position of a dimension is read: the call, its argument, and which entries change.

        Args:
            source: a dimension of a layer's output, or of a tensor that belongs to no layer.
        """
        of_tensor = isinstance(source[0], str)
        value = self.tensors[source[0]].detach() if of_tensor else self.calls[source[0]].output
        changed, before = value.clone(), value.clone()
        noise = torch.rand(value.shape, generator=torch.Generator().manual_seed(0), dtype=value.dtype)
        # ReLU and pooling let a rise above the largest value pass.
        changed.select(source[-1], PROBED).add_((1 + noise.select(source[-1], PROBED)) * (1 + value.abs().max()))
        self._next, self._at, self._changed = 0, END if of_tensor else source[0], changed
        self._read = []
        with torch.no_grad():
            if of_tensor:
                value.copy_(changed)
            outputs = run(self._net, self._inputs)
            if of_tensor:
                value.copy_(before)
        yield from self._read
        if (difference := differs(outputs, self._outputs)).any():
            yield END, 0, difference


def differs(one: Tensor, other: Tensor) -> Tensor:
    """Return which entries differ by more than rounding errors of float64."""
    return ~torch.isclose(one, other, rtol=1e-9, atol=1e-12)


def slab(changed: Tensor, size: int) -> int:
    """Return the dimension with ``size`` positions, or blocks of equal length, of which one changed; -1: none.

    Args:
        changed: which entries changed after position :data:`PROBED` was changed.
        size: number of positions.
    """
    for dim in range(1, changed.dim()):
        block, rest = divmod(changed.shape[dim], size)
        others = [other for other in range(changed.dim()) if other != dim]
        positions = changed.sum(dim=others).nonzero().flatten().tolist()
        if not rest and (positions[0], positions[-1]) == (PROBED * block, (PROBED + 1) * block - 1):
            return dim
    return -1
