"""Groups of channels: the dimensions of a net's tensors that must hold the same positions, found by tracing the net."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hetfl.local.nesting import prepared, randomise, run
from hetfl.pruning.channels.tracing import END, OUTPUT, Call, Trace, Vertex, slab
from hetfl.submodel import state_of
from hetfl.tree import Tree, cast

Dimension = tuple[str, int]
"""A tensor's name and one of its dimensions."""


@dataclass(frozen=True)
class Member:
    """A dimension of a tensor that belongs to a group.

    Attributes:
        tensor: the tensor's name.
        dim: the dimension.
        block: number of positions per channel, which follow each other; above 1 for a flattened map.
        reads: whether a layer reads the channels of its input by this dimension.
    """

    tensor: str
    dim: int
    block: int = 1
    reads: bool = False

    def positions(self, channels: Tensor) -> Tensor:
        """Return the positions of channels in the dimension, int64, ascending if the channels are."""
        if self.block == 1:
            return channels
        return (channels.unsqueeze(1) * self.block + torch.arange(self.block)).flatten()


@dataclass(frozen=True)
class Group:
    """Dimensions that hold the same channels: permuting the channels of all of them leaves the outputs unchanged.

    Attributes:
        size: number of channels.
        members: in the order of the net's tensors.
    """

    size: int
    members: tuple[Member, ...]


def channel_groups(net: nn.Module, inputs_N: Tree, dimensions: Collection[Dimension] | None = None) -> list[Group]:
    """Return the groups of a net's channels: layers that are added, norms, depthwise convolutions, the next inputs.

    The net runs in float64 in evaluation mode. A layer's output channels are joined with the inputs of the layers that
    read them: those where a change of one channel changes the same channel, or a block of positions that follow each
    other, and nothing else. Every group is checked: a random permutation of its channels must leave the outputs
    unchanged. Channels that something else mixes, and those of the net's inputs and outputs, are in no group.

    Args:
        net: the global net; it is not changed.
        inputs_N: a few samples, in the form that the net takes.
        dimensions: the dimensions that groups may have; None: all.
    """
    copy, inputs_N = prepared(net), cast(inputs_N, torch.float64)
    randomise(copy)
    ties = _Ties(dimensions)
    readers = _tie(ties, Trace(copy, inputs_N))
    order = {name: place for place, name in enumerate(state_of(net))}
    groups = []
    for sizes in ties.sets():
        size = min(sizes.values())
        if size == 1 or any(each % size for each in sizes.values()):
            continue
        of_tensors = sorted((v for v in sizes if v[0] in order), key=lambda v: (order[v[0]], v[1]))
        members = tuple(Member(v[0], v[1], sizes[v] // size, v in readers) for v in of_tensors)
        groups += [Group(size, members)] if members else []
    whole = prepared(net)
    randomise(whole)
    groups.sort(key=lambda group: order[group.members[0].tensor])
    return groups if _unchanged(whole, inputs_N, groups) else [g for g in groups if _unchanged(whole, inputs_N, [g])]


class _Ties:
    """Sets of dimensions that are tied to each other, of those that may be in groups."""

    def __init__(self, dimensions: Collection[Dimension] | None) -> None:
        self._sizes: dict[Vertex, int] = {}
        self._parents: dict[Vertex, Vertex] = {}
        self._dimensions = None if dimensions is None else set(dimensions)
        self.broken: set[Vertex] = set()  # mixed with others, or of the net's inputs or outputs

    def may(self, vertex: Vertex) -> bool:
        """Return whether a dimension may be in groups."""
        return self._dimensions is None or not isinstance(vertex[0], str) or vertex in self._dimensions

    def join(self, sizes: Mapping[Vertex, int]) -> None:
        """Tie dimensions to each other, given their sizes."""
        first, *others = sizes
        self._sizes |= sizes
        for other in others:
            self._parents[self._root(other)] = self._root(first)

    def _root(self, vertex: Vertex) -> Vertex:
        while (parent := self._parents.get(vertex, vertex)) != vertex:
            vertex = parent
        return vertex

    def sets(self) -> Iterator[dict[Vertex, int]]:
        """Yield the sets of tied dimensions without a broken one, with their sizes."""
        sets = defaultdict[Vertex, dict[Vertex, int]](dict)
        for vertex, size in self._sizes.items():
            sets[self._root(vertex)][vertex] = size
        yield from (each for each in sets.values() if not self.broken.intersection(each))


def _tie(ties: _Ties, trace: Trace) -> set[Vertex]:
    """Tie the dimensions of a net; return those by which layers read their inputs."""
    readers, sources, taken = set[Vertex](), dict[Vertex, int](), dict[Vertex, int]()
    free = dict(trace.tensors)  # those that belong to no layer, such as the embeddings of positions
    for number, call in enumerate(trace.calls):
        own = trace.own(call.layer)
        free = {name: tensor for name, tensor in free.items() if name not in own}
        sizes = {v: size for v, size in _sizes(own).items() if ties.may(v)}
        readers |= {v for v in sizes if own[v[0]].dim() > 1 and v[1] != _written(call.layer)}
        for vertices in _layer_ties(call, number, own, sizes):
            ties.join(vertices)
            sources |= {v: size for v, size in vertices.items() if v[:2] == (number, OUTPUT)}
            taken |= {v: size for v, size in vertices.items() if v[0] == number and v[1] != OUTPUT}
    sources |= {v: size for v, size in _sizes(free).items() if ties.may(v)}
    given = set[Vertex]()
    for source, size in sources.items():
        ties.join({source: size})
        for number, argument, changed in trace.reached(source) if size > 1 else ():
            target = (number, argument, slab(changed, size))
            if target in taken and number != END:
                ties.join({source: size, target: taken[target]})
                given.add(target)
            else:
                ties.broken.add(source)
    ties.broken |= taken.keys() - given  # these are read from the net's inputs
    return readers


def _sizes(tensors: Mapping[str, Tensor]) -> dict[Vertex, int]:
    return {(name, dim): size for name, tensor in tensors.items() for dim, size in enumerate(tensor.shape)}


def _written(layer: nn.Module) -> int:
    """Return the dimension of a layer's weights that is its output."""
    return int(isinstance(layer, nn.Embedding) or (isinstance(layer, _ConvNd) and layer.transposed))


def _layer_ties(
    call: Call, number: int, own: Mapping[str, Tensor], sizes: Mapping[Vertex, int]
) -> Iterator[dict[Vertex, int]]:
    """Yield the dimensions of a layer's tensors, inputs and output that are tied to each other, with their sizes.

    Convolutions, linear layers and embeddings are known. If all tensors are vectors of one size, as in norm layers, the
    trace knows their dimension in the output. In any other layer all dimensions of equal size are one set.

    Args:
        call: a call of the layer.
        number: of the call.
        own: the layer's tensors.
        sizes: of the dimensions that may be in groups.
    """
    layer, last = call.layer, call.output.dim() - 1

    def tied(dims: Collection[int], ends: Sequence[tuple[int, int]]) -> dict[Vertex, int]:
        """Return dimensions of the weight, with the vectors if one is the output, and of inputs and output."""
        written = _written(layer) in dims
        chosen = [v for v in sizes if (v[1] in dims if own[v[0]].dim() > 1 else written)]
        each = [(end, axis, call.output if end == OUTPUT else call.inputs[end]) for end, axis in ends]
        return {v: sizes[v] for v in chosen} | {(number, end, axis): t.shape[axis] for end, axis, t in each}

    if isinstance(layer, _ConvNd):
        axis, out = last - len(layer.kernel_size), _written(layer)
        if layer.groups == 1:
            yield tied([out], [(OUTPUT, axis)])
            yield tied([1 - out], [(0, axis)])
        elif layer.groups == layer.in_channels and not layer.transposed:
            yield tied([out], [(OUTPUT, axis), (0, axis)])
    elif isinstance(layer, nn.Linear):
        yield tied([0], [(OUTPUT, last)])
        yield tied([1], [(0, last)])
    elif isinstance(layer, nn.Embedding):
        yield tied([1], [(OUTPUT, last)])
    elif call.axis >= 0:
        yield tied([0], [(OUTPUT, call.axis), (0, call.axis)])
    else:
        ends = [(i, tensor.dim() - 1, tensor) for i, tensor in enumerate([*call.inputs, call.output])]
        for size in sorted(set(sizes.values()) - {1}):
            numbered = [(OUTPUT if i == len(call.inputs) else i, axis) for i, axis, t in ends if t.shape[-1] == size]
            of_tensors: dict[Vertex, int] = {v: size for v, each in sizes.items() if each == size}
            yield of_tensors | {(number, end, axis): size for end, axis in numbered}


def _unchanged(net: nn.Module, inputs_N: Tree, groups: Sequence[Group]) -> bool:
    """Return whether a permutation of the channels of groups leaves the outputs unchanged."""
    tensors, random = state_of(net), torch.Generator().manual_seed(0)
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    with torch.no_grad():
        expected = run(net, inputs_N)
        for group in groups:
            order = torch.randperm(group.size, generator=random)
            order = order.roll(1) if torch.equal(order, torch.arange(group.size)) else order
            for member in group.members:
                tensor = tensors[member.tensor]
                tensor.copy_(tensor.index_select(member.dim, member.positions(order)))
        outputs = run(net, inputs_N)
        for name, tensor in tensors.items():
            tensor.copy_(before[name])
    return torch.allclose(outputs, expected, rtol=1e-6, atol=1e-9)
