"""The global models: one, or one per cluster."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from hetfl.checksum import checksum
from hetfl.clustering import NewModel
from hetfl.errors import ConfigurationError
from hetfl.levels.level_set import LevelSet
from hetfl.part import Part, only
from hetfl.seeding import generator
from hetfl.submodel import buffers_of, parameters_of, state_of

MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]


def default_server_optimizer(params: Iterable[Tensor]) -> Optimizer:
    """Return SGD(lr=1): the global model moves by the mean delta, θ ← θ + Δ, as in FedAvg."""
    return SGD(params, lr=1.0)


class GlobalModels(nn.ModuleList):
    """The nets that the federation learns, all of the largest level; their number may change during a run.

    Args:
        levels: draws new nets.
        count: the number of models at first.
        shared: patterns of names of tensors that all models share, ``*`` for anything.

    Attributes:
        version: number of rounds that the models have completed.
        patterns: patterns of names of the shared tensors.
    """

    def __init__(self, levels: LevelSet, count: int = 1, shared: Sequence[str] = ()) -> None:
        super().__init__([levels.net, *(levels.draw(number) for number in range(1, count))])
        self.levels, self.patterns, self.version = levels, tuple(shared), 0
        self._tensors: list[dict[str, Tensor]] | None = None
        self._edits = 0  # changes that torch's version counter missed
        self._noticed: tuple[int, int] | None = None  # the mark, and the checksum of the values last seen with it

    @property
    def last_round(self) -> int:
        """The last round that the models completed; 0 before the first."""
        return max(self.version - 1, 0)

    @property
    def tensors(self) -> list[dict[str, Tensor]]:
        """Every model's parameters and float buffers by name; shared ones are the first model's."""
        if self._tensors is None:
            first = state_of(self[0])
            for net in list(self)[1:]:
                _share(net, {name: first[name] for name in self.shared})
            self._tensors = [first, *map(state_of, list(self)[1:])]
        return self._tensors

    @cached_property
    def shared(self) -> frozenset[str]:
        """Names of the tensors that all models share."""
        return frozenset(name for name in state_of(self[0]) for p in self.patterns if fnmatchcase(name, p))

    @cached_property
    def trained(self) -> frozenset[str]:
        """Names of the parameters, which are trained and compressed; buffers are sent uncompressed."""
        return frozenset(parameters_of(self[0]))

    @cached_property
    def float_buffers(self) -> frozenset[str]:
        """Names of the float buffers that are sent with the parameters."""
        return frozenset(buffers_of(self[0]))

    @cached_property
    def frozen(self) -> dict[str, Tensor]:
        """Parameters of the first model that are not trained, by name."""
        return {name: parameter for name, parameter in self[0].named_parameters() if not parameter.requires_grad}

    def unfrozen(self, part: Part) -> Part:
        """Return a part without frozen parameters."""
        return only(part, frozenset(name for name in part if name not in self.frozen)) if self.frozen else part

    @property
    def like(self) -> Tensor:
        """A tensor with the models' dtype and device."""
        return next(self[0].parameters()).detach()

    @property
    def mark(self) -> int:
        """A number that grows whenever the models' values change: the sum of torch's version counters.

        Torch does not count changes through ``.data``; :meth:`notice_edits` counts them.
        """
        return sum(tensor._version for tensors in self.tensors for tensor in tensors.values()) + self._edits

    def notice_edits(self) -> None:
        """Count a change of values that torch did not count: through ``.data``, or from NumPy."""
        content = checksum(tensor for tensors in self.tensors for tensor in tensors.values())
        if self._noticed is not None and self._noticed[0] == self.mark and self._noticed[1] != content:
            self._edits += 1
        self._noticed = (self.mark, content)

    def build(self, level: str) -> nn.Module:
        """Return a new net of a level on the models' device and in their dtype."""
        return self.levels.build(level).to(self.like)

    def optimizer(self, make: MakeOptimizer) -> Optimizer:
        """Return the server's optimizer, with one parameter group per model; the first group has the shared ones."""
        optimizer = make(parameters_of(self[0]).values())
        for net in list(self)[1:]:
            add_group(optimizer, (p for name, p in parameters_of(net).items() if name not in self.shared))
        return optimizer

    def check_shared(self) -> None:
        """Refuse patterns that match no tensor, or all tensors.

        Raises:
            ConfigurationError: a pattern matches no tensor, or all tensors are shared.
        """
        names = state_of(self[0])
        for pattern in self.patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigurationError(
                    f"Expected patterns in clustering.shared that match tensors of the net, such as "
                    f"{next(iter(names))!r}, but got {pattern!r}"
                )
        if len(self.shared) == len(names):
            raise ConfigurationError("Expected tensors of the net that are not in clustering.shared but got none")

    def resize(self, count: int, shared: Sequence[str] | None = None) -> None:
        """Change the number of models: drop the last ones, or append new ones, whose values the caller must load.

        Args:
            count: the number of models.
            shared: patterns of the shared tensors; None: unchanged.
        """
        self.patterns = self.patterns if shared is None else tuple(shared)
        del self[count:]
        self.extend(self.levels.draw().to(self.like) for _ in range(count - len(self)))
        self.forget()

    def renew(self, fresh: Sequence[NewModel], optimizer: Optimizer, round: int, seed: int) -> None:
        """Give clusters the new models that a clustering asks for at the end of a round.

        Args:
            fresh: the new models, in order.
            optimizer: the server's; it copies the source's state for a copied model, and has none for a drawn model.
            round: the round.
            seed: of every random choice.
        """
        for new in fresh:
            if grown := new.cluster == len(self):
                self.resize(len(self) + 1)
            source = self.levels.draw(new.cluster, "round", round) if new.source is None else self[new.source]
            of_source = dict(source.state_dict(keep_vars=True))
            apart = {n: p for n, p in parameters_of(self[new.cluster]).items() if n not in self.shared}
            random = generator(seed, "clustering", round, new.cluster)
            with torch.no_grad():
                for name, target in self.tensors[new.cluster].items():
                    if name not in self.shared:
                        # Buffers get no noise: it could make a running variance negative.
                        jitter = new.jitter if name in apart else 0.0
                        target.copy_(_jittered(of_source[name].detach(), jitter, random))
            if grown:
                add_group(optimizer, apart.values())
            for name, parameter in apart.items() if new.source != new.cluster else ():
                optimizer.state.pop(parameter, None)
                if new.source is not None and of_source[name] in optimizer.state:
                    optimizer.state[parameter] = copy.deepcopy(optimizer.state[of_source[name]])

    def forget(self) -> None:
        """Forget the cached tensors and names of the nets."""
        self._tensors = None
        forget_cached(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Forget the cached tensors when the nets move to another device or dtype: this replaces the buffers."""
        self.forget()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


def add_group(optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Give an optimizer one more parameter group, with the present settings of the first group."""
    settings = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    optimizer.add_param_group({**settings, "params": list(parameters)})


def _share(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace a net's parameters and buffers by ``tensors`` of the same names."""
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        module = net.get_submodule(owner)
        if isinstance(tensor, nn.Parameter):
            module._parameters[leaf] = tensor
        else:
            module._buffers[leaf] = tensor


def _jittered(value: Tensor, jitter: float, random: torch.Generator) -> Tensor:
    if not jitter:
        return value
    scale = jitter * float(value.double().norm()) / math.sqrt(value.numel())
    return value + scale * torch.randn(value.shape, generator=random, dtype=value.dtype).to(value.device)


def forget_cached(part: object) -> None:
    """Forget the values of an object's cached properties."""
    for name in [name for name in vars(part) if isinstance(getattr(type(part), name, None), cached_property)]:
        delattr(part, name)
