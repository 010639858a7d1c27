"""Structured pruning: the channels with the best scores in the present global model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.fleet import Device
from hetfl.part import Part
from hetfl.parts.base import GradientProbe, PartRule, mean_gradients
from hetfl.parts.entry_seconds import entry_seconds
from hetfl.piece import Facts
from hetfl.pruning.channels import Group, Member, channel_groups, channel_scores, ranking
from hetfl.pruning.criteria import Criterion, Evidence, Magnitude
from hetfl.pruning.gradients import GradientRequest
from hetfl.seeding import derive

Tensors = dict[str, Tensor]


class ScoredChannels(PartRule):
    """A level's clients hold the channels with the highest scores of each group, as many as the level's net has.

    Groups are the dimensions of tensors that hold the same channels (:func:`hetfl.pruning.channels.channel_groups`).
    Each group has its own ranking. A channel's score is the sum of the scores of its entries
    (:func:`hetfl.pruning.channels.channel_scores`). Of channels with equal scores the lower position is held first. A
    larger level holds all channels of a smaller one. All clients of a level hold the same part in a round.

    Channels are ranked at the beginning of a round, by the values of the first global model. Before the first round,
    those of the initial model are ranked.

    With :class:`Magnitude` this is the pruning of filters of Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for
    Efficient ConvNets, ICLR 2017, as FedMP does it (Jiang, Xu, Xu, Wang, Qiao, Zhao: FedMP, ICDE 2022).

    Args:
        criterion: scores entries; None: :class:`Magnitude`, so that a channel's score is the L1 norm of its filter. A
            criterion that needs gradients asks the cohort of the round before, at its beginning; the gradient of a
            channel that no client of it holds is 0. One that needs gradients or earlier values ranks by magnitude at
            first.
        refresh_every: rounds for which a ranking is kept.
        fan_out: whether the weights by which the next layers read a channel count, too.
        mean: whether each tensor of a group counts by the mean over a channel's entries, and not by their sum.

    Raises:
        ConfigurationError: ``refresh_every`` is below 1; in a run: a level scales channels that are in no group, or a
            group has no entry with a score.
    """

    for_evaluation: ClassVar[bool] = True
    replayable: ClassVar[bool] = False

    def __init__(
        self, criterion: Criterion | None = None, refresh_every: int = 1, fan_out: bool = False, mean: bool = False
    ) -> None:
        if refresh_every < 1:
            raise ConfigurationError(f"Expected refresh_every of at least 1 round but got {refresh_every}")
        self.criterion = criterion or Magnitude()
        self.refresh_every, self.fan_out, self.mean = refresh_every, fan_out, mean
        self.asks_gradients = self.criterion.needs_gradients
        self._groups: list[Group] | None = None
        self._rankings: list[Tensor] | None = None  # of each group, positions of channels by falling score
        self._coming: list[Tensor] | None = None  # those of the next round, by its gradients
        self._of_round = False  # whether the rankings are those of a round
        self._parts: dict[str, Part] = {}
        self._tensors: Mapping[str, Tensor] = {}
        self._last: Tensors = {}  # the weights at the beginning of the last round, if the criterion needs them
        self._start: Tensors = {}  # those at the beginning of the first round, likewise
        self._samples = 0.0

    def setup(self, facts: Facts) -> None:  # noqa: D102
        self._tensors = {**facts.parameters, **facts.frozen}
        self._samples = facts.epochs * sum(facts.sizes) / max(1, facts.num_clients)
        if not self._of_round:
            self._rankings = None

    @property
    def _weights(self) -> Tensors:
        """The present values of the first global model, frozen parameters included."""
        return {name: tensor.detach() for name, tensor in self._tensors.items()}

    def begin(self) -> None:
        """Move loaded values to the model's device."""
        self._last = {name: value.to(self._tensors[name].device) for name, value in self._last.items()}

    def consult(self, round: int, cohort: Sequence[int], probe: GradientProbe) -> None:
        """Rank the channels for the next round by the cohort's gradients, if the criterion needs them."""
        if not self.asks_gradients or (round + 1) % self.refresh_every:
            return
        asked = mean_gradients(self._weights, cohort, probe, GradientRequest())
        if asked.samples:
            seconds = entry_seconds(self.levels, self._weights, self._samples, Device())
            known = {"gradients": asked.means, "squares": asked.squares, "seconds": seconds}
            self._coming = self._ranked(self.criterion, round + 1, known)

    def begin_round(self, round: int, lr: float) -> None:
        """Rank the channels by the values of the present global model, if that is due."""
        if not self._of_round:
            self._rank(self._first())
        elif round % self.refresh_every == 0:
            if not self.asks_gradients:
                self._rank(self._ranked(self.criterion, round, self._history()))
            elif self._coming is not None:
                self._rank(self._coming)
        self._of_round = True
        if self.criterion.needs_history:
            self._last = {name: weight.clone() for name, weight in self._weights.items()}
            self._start = self._start or self._last

    def _history(self) -> dict[str, Any]:
        if not self.criterion.needs_history:
            return {}
        return {"last": self._last, "start": {name: self._start[name].to(w) for name, w in self._weights.items()}}

    def _first(self) -> list[Tensor]:
        """Return the rankings of the initial model."""
        return self._ranked(Magnitude() if self.criterion.needs_rounds else self.criterion, 0, {})

    def _ranked(self, criterion: Criterion, round: int, known: Mapping[str, Any]) -> list[Tensor]:
        scores = criterion.scores(Evidence(self._weights, seed=derive(self.seed, "channels", round), **known))
        options = {"fan_out": self.fan_out, "mean": self.mean, "of_norms": criterion.of_norms}
        return [ranking(channel_scores(group, scores, **options)) for group in self._of_net()]

    def _rank(self, rankings: list[Tensor]) -> None:
        self._rankings, self._coming, self._parts = rankings, None, {}

    def _of_net(self) -> list[Group]:
        """Return the groups of the dimensions that levels scale."""
        if self._groups is None:
            scaled = {(name, dim) for block in self.levels.indices.values() for name, dim, _ in self._scaled(block)}
            if scaled and self.levels.samples is None:
                raise ConfigurationError("Expected samples to find groups of channels with but got none")
            groups = channel_groups(self.levels.net, self.levels.samples, scaled) if scaled else []
            known = {(member.tensor, member.dim) for group in groups for member in group.members}
            for name, dim in sorted(scaled - known):
                raise ConfigurationError(
                    f"Expected channels that can be permuted, for ScoredChannels, but got dimension {dim} of {name!r}, "
                    "whose positions a layer mixes with others: choose another part rule, such as hetfl.parts.Prefix"
                )
            self._groups = groups
        return self._groups

    def _scaled(self, block: Part) -> Iterator[tuple[str, int, int]]:
        """Yield the name of a tensor, a dimension and its size, where a level has fewer positions than the net."""
        whole = self.levels.whole.layout.shapes
        for name, shape in block.layout.shapes.items():
            yield from ((name, dim, size) for dim, size in enumerate(shape) if size < whole[name][dim])

    def part(self, level: str, round: int, client: int) -> Part:  # noqa: D102
        if self._rankings is None:
            self._rank(self._first())
        if level not in self._parts:
            assert self._rankings is not None
            self._parts[level] = self._part(self.levels.indices[level], self._rankings)
        return self._parts[level]

    def _part(self, block: Part, rankings: Sequence[Tensor]) -> Part:
        groups = {(m.tensor, m.dim): (group, m) for group, each in enumerate(self._of_net()) for m in each.members}
        chosen: dict[tuple[int, int, int], slice | Tensor] = {}
        entries = {name: list(entry) for name, entry in block.items()}
        for name, dim, size in self._scaled(block):
            group, member = groups[name, dim]
            key = (group, member.block, size)
            if key not in chosen:
                best = rankings[group][: size // member.block].sort().values
                chosen[key] = _shortest(member.positions(best))
            entries[name][dim] = chosen[key]
        return Part({name: tuple(entry) for name, entry in entries.items()}) if chosen else block

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        of_round = {"coming": self._coming, "last": dict(self._last), "start": dict(self._start)}
        return {**self.evaluation_state(), **of_round}

    def evaluation_state(self) -> dict[str, Any]:  # noqa: D102
        groups = [[g.size, [[m.tensor, m.dim, m.block, m.reads] for m in g.members]] for g in self._groups or ()]
        return {"groups": groups, "rankings": self._rankings, "of_round": self._of_round}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        groups = [Group(size, tuple(Member(*member) for member in members)) for size, members in state["groups"]]
        self._groups, self._parts = groups or None, {}
        self._rankings, self._of_round = state["rankings"], state["of_round"]
        self._coming, self._last = state.get("coming"), dict(state.get("last", {}))
        if self.criterion.needs_history:  # older checkpoints are of runs that began with the drawn values
            drawn = state["start"] if "start" in state else dict(self.levels.draw().named_parameters())
            self._start = {name: each.detach() for name, each in drawn.items()}


def _shortest(positions: Tensor) -> slice | Tensor:
    """Return rising positions, as a slice if they follow each other."""
    first, last = int(positions[0]), int(positions[-1])
    return slice(first, last + 1) if last - first + 1 == positions.numel() else positions
