"""Channels that no client holds any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.levels.level_set import LevelSet
from hetfl.part import Part
from hetfl.parts.base import AskingProbe, PartRule
from hetfl.parts.prefix import Prefix
from hetfl.piece import Facts, Piece
from hetfl.pruning.channels.groups import Group
from hetfl.submodel import parameters_of, state_of
from hetfl.types import COPY


@dataclass(frozen=True)
class PrunedGroup:
    """Channels of a group that are pruned, in a form that a configuration can hold.

    Attributes:
        size: number of channels of the group.
        channels: the pruned ones.
        tensors: by name of a tensor, its dimensions that hold the channels.
    """

    size: int
    channels: list[int]
    tensors: dict[str, list[int]]

    @staticmethod
    def of(group: Group, channels: Iterable[int], names: Iterable[str]) -> PrunedGroup:
        """Return channels of a group as pruned, in the tensors with some names."""
        dims: dict[str, list[int]] = {name: [] for name in names}
        for member in group.members:
            if member.tensor in dims:
                dims[member.tensor].append(member.dim)
        return PrunedGroup(group.size, list(channels), {name: of for name, of in dims.items() if of})


class PrunedChannels(PartRule):
    """Clients hold the part that another rule gives them, without some channels of the global model.

    The entries by which pruned channels are computed and read, in trained parameters, are zero at the start of a run.
    No level holds them, so they stay zero. Where clients train more than they hold (``complement`` of
    :class:`~hetfl.parts.RankedMask`), they train these entries, too, but do not send them.

    Args:
        groups: the pruned channels.
        rule: gives clients their parts; None: the leading channels and stages.

    Raises:
        ConfigurationError: a channel is not below the size of its group, or no channel of a group would stay; in a run:
            a tensor is unknown, or its dimension does not hold the channels.
    """

    masks: ClassVar[bool] = True
    replayable: ClassVar[bool] = False

    def __init__(self, groups: list[PrunedGroup], rule: PartRule | None = None) -> None:
        for group in groups:
            if not all(0 <= channel < group.size for channel in group.channels):
                raise ConfigurationError(f"Expected channels from 0 to {group.size - 1} but got {group.channels}")
            if len(set(group.channels)) >= group.size:
                raise ConfigurationError(f"Expected a channel that stays of {group.size} but got all as pruned")
        self.groups, self.rule = groups, rule or Prefix()
        self.personal, self.asks_gradients = self.rule.personal, self.rule.asks_gradients
        self.trains_all, self.trains_sent = self.rule.trains_all, self.rule.trains_sent
        self._models: Iterable[nn.Module] = ()

    def members(self) -> dict[str, Piece]:
        """Return the other rule, and its members."""
        return {"rule": self.rule, **{f"rule.{name}": each for name, each in self.rule.members().items()}}

    def settings(self) -> dict[str, object]:  # noqa: D102
        return {"groups": [[group.size, group.channels, group.tensors] for group in self.groups], "rule": self.rule}

    def meet(self, levels: LevelSet, seed: int) -> None:  # noqa: D102
        self.rule.meet(levels, seed)
        self.levels, self.seed = levels, seed
        self._name, trained = self.describe(), parameters_of(levels.net)
        self._pruned = dict[tuple[str, int], Tensor]()  # by name and dimension, which positions are pruned
        for group in self.groups:
            for name, dims in group.tensors.items():
                for dim in dims:
                    shape = trained[name].shape if name in trained else torch.Size()
                    if not 0 <= dim < len(shape) or shape[dim] % group.size:
                        raise ConfigurationError(
                            f"Expected dimensions of trained parameters with {group.size} channels to prune but got "
                            f"dimension {dim} of {name!r}, {tuple(shape) if name in trained else 'which is none'}"
                        )
                    pruned = torch.zeros(group.size, dtype=torch.bool)
                    pruned[group.channels] = True
                    self._pruned[name, dim] = pruned.repeat_interleave(shape[dim] // group.size)

    def consult(self, round: int, cohort: Sequence[int], probe: AskingProbe) -> None:  # noqa: D102
        self.rule.consult(round, cohort, probe)

    def setup(self, facts: Facts) -> None:  # noqa: D102
        self._models = facts.models if len(facts.models) else [self.levels.net]

    def begin(self) -> None:
        """Set the pruned entries of all global models to zero."""
        for net in self._models:
            tensors = state_of(net)
            with torch.no_grad():
                for (name, dim), pruned in self._pruned.items():
                    tensors[name].index_fill_(dim, pruned.nonzero().flatten().to(tensors[name].device), 0.0)

    def part(self, level: str, round: int, client: int) -> Part:  # noqa: D102
        part = self.rule.part(level, round, client)
        return part.derived(self._name, lambda: self._with(part, False)) if self._pruned else part

    def sent(self, part: Part, level: str, round: int, client: int) -> Part:  # noqa: D102
        if not self._pruned:
            return self.rule.sent(part, level, round, client)
        whole = part.derived(f"{self._name} whole", lambda: self._with(part, True))  # as if nothing were pruned
        sent = self.rule.sent(whole, level, round, client)
        return sent.derived(self._name, lambda: self._with(sent, False))

    def first_values(self, client: int) -> Mapping[str, Tensor] | None:  # noqa: D102
        return self.rule.first_values(client)

    def _with(self, part: Part, pruned_are_held: bool) -> Part:
        """Return a part with or without the entries of pruned channels."""
        held_D = torch.ones(part.layout.size, dtype=torch.bool) if part.mask_D is None else part.mask_D.clone()
        for name, held in part.layout.views(held_D).items():
            for dim, positions in enumerate(part[name]):
                if (pruned := self._pruned.get((name.partition(COPY)[0], dim))) is not None:
                    held.index_fill_(dim, pruned[positions].nonzero().flatten(), pruned_are_held)
        return Part(part, held_D)
