"""Tensors of which each level has its own copy in the global model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from hetfl.errors import ConfigurationError
from hetfl.part import Part
from hetfl.submodel import state_of, take
from hetfl.types import COPY


def copy_name(name: str, level: str) -> str:
    """Return the name, in the global model, of a level's copy of a tensor.

    >>> copy_name("blocks.0.norm.weight", "b")
    'blocks.0.norm.weight@b'
    """
    return f"{name}{COPY}{level}"


class LevelCopies:
    """The per-level tensors: every level below the largest reads and trains its own copy of them.

    A copy is a tensor of the global model in the shape of the level's net, beside the tensor that it is a copy of,
    which belongs to the largest level alone. The index of the level has the copy's name in place of the tensor's. So
    the mean over the holders of an entry is a mean within the level. At first a copy has the values of the leading
    block.

    NeFL (Kang et al., 2023, arXiv 2308.07761) calls them inconsistent parameters.

    Args:
        patterns: patterns of names, as :mod:`fnmatch` reads them.
        blocks: by level, the leading block of every tensor, the largest level's first.

    Attributes:
        names: of the per-level tensors.

    Raises:
        ConfigurationError: a pattern matches no tensor.
    """

    def __init__(self, patterns: Sequence[str] = (), blocks: Mapping[str, Part] | None = None) -> None:
        self._blocks = dict(blocks or {})
        self._largest = next(iter(self._blocks), "")
        tensors = list(self._blocks.get(self._largest, ()))
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in tensors):
                raise ConfigurationError(
                    f"Expected patterns of per_level that match tensors, such as {tensors[0]!r}, but got {pattern!r}"
                )
        self.names = frozenset(name for name in tensors for pattern in patterns if fnmatchcase(name, pattern))

    def index(self, level: str) -> Part:
        """Return the index of a level: its leading block, with its own copies in place of per-level tensors."""
        block = self._blocks[level]
        if level == self._largest or not self.names:
            return block
        return Part({copy_name(n, level) if n in self.names else n: entry for n, entry in block.items()})

    def block(self, part: Part) -> Part:
        """Return a part without a mask, with per-level tensors in place of their copies."""
        return Part({name.partition(COPY)[0]: entry for name, entry in part.items()}) if self.names else part

    def add_to(self, net: nn.Module) -> nn.Module:
        """Give a net of the largest level the copies of all other levels; return the net."""
        tensors = state_of(net)
        for level in [name for name in self._blocks if name != self._largest]:
            for name in [name for name in self._blocks[level] if name in self.names]:
                owner, _, leaf = name.rpartition(".")
                value = take(tensors[name].detach(), self._blocks[level][name]).clone()
                if isinstance(tensors[name], nn.Parameter):
                    parameter = nn.Parameter(value, tensors[name].requires_grad)
                    net.get_submodule(owner).register_parameter(copy_name(leaf, level), parameter)
                else:
                    net.get_submodule(owner).register_buffer(copy_name(leaf, level), value)
        return net

    def with_copies(self, names: Iterable[str]) -> frozenset[str]:
        """Return names of tensors, and the names of all their copies."""
        names = frozenset(names)
        return names.union(*({copy_name(name, level) for name in names & self.names} for level in self._blocks))
