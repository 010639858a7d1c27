"""The base class of part rules whose masks follow from the global model's weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.fleet import Device
from hetfl.levels.level_set import LevelSet
from hetfl.part import Part
from hetfl.parts.base import NOBODY, AskingProbe, PartRule, mean_gradients
from hetfl.parts.entry_seconds import entry_seconds
from hetfl.piece import Facts
from hetfl.pruning.criteria import Evidence
from hetfl.pruning.densities import Masks, Scope, check_density, packed, unpacked
from hetfl.pruning.gradients import GradientRequest, MeanGradients
from hetfl.seeding import derive
from hetfl.submodel import parameters_of, take


class MaskRule(PartRule):
    """Levels with a density below 1 hold a share of the entries of the weights, chosen by the subclass.

    Weights are the trained parameters of two and more dimensions of the first global model; all other tensors are held
    whole. Masks change only at the end of a round, so that all clients of a level, and the evaluation, use the same.
    With several global models all use the same masks.
    A level that is also narrower holds the entries of the mask that lie within its leading block.

    Attributes:
        rounds: number of rounds of the run.
        models: the present global models.
        sparse: the densities below 1 of the levels, the largest first.
        asked: the cohort's gradients in the present round; None: it was not asked.
    """

    masks: ClassVar[bool] = True
    for_evaluation: ClassVar[bool] = True
    replayable: ClassVar[bool] = False
    several_densities: ClassVar[bool] = False
    """Whether levels may have several densities below 1."""
    _needs_whole_levels: ClassVar[bool] = False
    """Whether levels with a density below 1 must have the width and depth of the global model."""
    follows_clients = False
    """Whether masks follow the values that clients train, as the server knows them."""
    open_ended = True
    """Whether the rule works in a run without a last round."""
    device = Device()
    """The device whose seconds criteria may use."""
    _scope: Scope | None = None
    """Where entries compete for the masks of a level's density; None: no mask is chosen by a density."""

    def meet(self, levels: LevelSet, seed: int) -> None:
        """Set the levels and the seed.

        Raises:
            ConfigurationError: no density is below 1, or several are and the rule makes one mask, or a sparse level is
                narrower or shallower than the global model and the rule needs whole ones.
        """
        super().meet(levels, seed)
        self.sparse = sorted({level.density for level in levels.values() if level.density < 1.0}, reverse=True)
        if not self.sparse:
            raise ConfigurationError(
                f"Expected a level with a density below 1 for {type(self).__name__}, which chooses masks, but got "
                f"{', '.join(f'{name} of density 1' for name in levels)}"
            )
        if len(self.sparse) > 1 and not self.several_densities:
            raise ConfigurationError(
                f"Expected one density below 1 for {type(self).__name__}, which makes one mask, but got {self.sparse}: "
                "RankedMask has nested masks"
            )
        for name, level in levels.items() if self._needs_whole_levels else ():
            if level.density < 1.0 and levels.indices[name] != levels.indices[levels.largest]:
                raise ConfigurationError(
                    f"Expected the whole width and depth at level {name}, as {type(self).__name__} exchanges entries "
                    f"of the whole model, but got width {level.width:g}, depth {level.depth}"
                )
        self.rounds, self.samples_of_client = 0, 0.0
        self._held: dict[float, dict[str, Tensor]] = {}  # by density of a level
        self._provisional = True  # whether these were made without a run, by which masks may depend on its last round
        self._parts: dict[str, Part] = {}
        self.models: nn.ModuleList | list[nn.Module] = [levels.net]
        self._cleared = False  # whether pruned entries were zero at the end of the last round
        self.asked: MeanGradients | None = None

    @property
    def weights(self) -> dict[str, Tensor]:
        """The present weights of the first global model, by name."""
        return weights_of(self.levels.net)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of the weights, by name."""
        return {name: weight.shape for name, weight in self.weights.items()}

    def _check_densities(self) -> None:
        for name, level in self.levels.items():
            try:
                if self._scope is not None:
                    check_density(self._scope, self.shapes, level.density)
            except ConfigurationError as error:
                raise ConfigurationError(f"{error} (level {name})") from None

    def setup(self, facts: Facts) -> None:
        """Set the facts, and make the first masks.

        Raises:
            ConfigurationError: the density of a level would leave no entry of a weight; the rule needs the last round
                of a run that has none; or its masks follow the values of clients, and a weight is a personal tensor,
                which the server does not know.
        """
        self._check_densities()
        if facts.rounds is not None and facts.rounds < 0 and not self.open_ended:
            raise ConfigurationError(
                f"Expected until, or trainer.max_epochs, for {type(self).__name__}, which otherwise ends its schedule "
                f"with the run, but got a run without a last round"
            )
        if self.follows_clients and (unknown := sorted(facts.personal & self.shapes.keys())):
            raise ConfigurationError(
                f"Expected no personal weight for {type(self).__name__}, whose masks follow the values of clients, but "
                f"got {unknown[0]!r}"
            )
        self.models = facts.models if len(facts.models) else self.models
        self.rounds = facts.rounds or self.rounds
        self.samples_of_client = facts.epochs * sum(facts.sizes) / max(1, facts.num_clients)
        if self._provisional:
            self.hold(self.first_masks())
            self._provisional = facts.rounds is None

    def begin_round(self, round: int, lr: float) -> None:
        """Set the pruned entries of new models to zero, if those of all models were zero at the end of the round."""
        if self._cleared and len(self.models) > 1:
            self.clear_pruned()
        self._cleared = False

    def whole(self) -> dict[str, Tensor]:
        """Return masks that hold all entries of the weights, by name."""
        return {name: torch.ones(shape, dtype=torch.bool) for name, shape in self.shapes.items()}

    def hold(self, masks: Mapping[float, Masks]) -> None:
        """Set the masks by density of the levels."""
        self._held, self._parts = {density: dict(each) for density, each in masks.items()}, {}

    def held(self, density: float) -> Masks:
        """Return the masks of the levels of a density, by name of the weight."""
        if not self._held:
            self.hold(self.first_masks())
        return self._held[density]

    @property
    def mask(self) -> Masks:
        """The present masks of the largest density below 1, by name of the weight."""
        return self.held(self.sparse[0])

    @abstractmethod
    def first_masks(self) -> dict[float, dict[str, Tensor]]:
        """Return the masks before the first round, by density of the levels."""

    def part(self, level: str, round: int, client: int) -> Part:  # noqa: D102
        density = self.levels[level].density
        if density == 1.0:
            return self.levels.indices[level]
        if client != NOBODY and (personal := self.of_client(client, density)) is not None:
            return self.masked(level, personal)
        if level not in self._parts:
            self._parts[level] = self.masked(level, self.held(density))
        return self._parts[level]

    def of_client(self, client: int, density: float) -> Masks | None:
        """Return the masks that a client chose itself at a density; None: it uses those of its level."""
        return None

    def masked(self, level: str, masks: Masks) -> Part:
        """Return the block of a level with masks of the global weights."""
        block = self.levels.indices[level]
        ones = {name: torch.ones(size, dtype=torch.bool) for name, size in zip(block, block.layout.sizes, strict=True)}
        flat = {name: take(mask, block[name]).flatten() for name, mask in masks.items() if name in block}
        return Part(block, torch.cat([flat.get(name, ones[name]) for name in block]))

    def request(self, round: int) -> GradientRequest | None:
        """Return which gradients the cohort is asked for at the start of a round; None: it is not asked."""
        return None

    def consult(self, round: int, cohort: Sequence[int], probe: AskingProbe) -> None:
        """Ask the cohort for gradients, if the rule needs them in the round."""
        self.asked = None
        if (request := self.request(round)) is not None:
            self.asked = mean_gradients(self.weights, cohort, probe, request)

    def evidence(self, **known: Any) -> Evidence:
        """Return what is known of the present weights.

        Args:
            known: further fields of the evidence.
        """
        return Evidence(self.weights, **known)

    def seconds(self) -> dict[str, float]:
        """Return the seconds that an entry of each weight costs a client of mean data in a round."""
        return entry_seconds(self.levels, self.weights, self.samples_of_client, self.device)

    def random_seed(self, round: int) -> int:
        """Return the seed of the random choices at the end of a round; -1 before the first."""
        return derive(self.seed, "masks", round)

    def clear_pruned(self) -> None:
        """Set the weights of all global models outside of the largest mask to zero."""
        self._cleared = True
        with torch.no_grad():
            for net in self.models:
                for name, weight in weights_of(net).items():
                    weight.masked_fill_(~self.mask[name].to(weight.device), 0.0)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        held = [[density, packed(masks)] for density, masks in self._held.items()]
        return {"masks": held, "cleared": self._cleared}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self.hold({density: unpacked(bits, self.shapes) for density, bits in state["masks"]})
        self._cleared = bool(state.get("cleared", False))  # older checkpoints are of one model
        self._provisional = False


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a net: its trained parameters of two and more dimensions, by name."""
    return {name: each.detach() for name, each in parameters_of(net).items() if each.dim() > 1}


def copies_of(models: Iterable[nn.Module]) -> list[dict[str, Tensor]]:
    """Return copies of the present weights of each model, by name."""
    return [{name: each.clone() for name, each in weights_of(net).items()} for net in models]
