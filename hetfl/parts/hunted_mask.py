"""FLASH: clients find the densities of the layers, and the entries of the mask are random or follow the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.part import Part
from hetfl.parts.base import AskingProbe
from hetfl.parts.client_masks import ClientMasks
from hetfl.parts.client_values import client_values
from hetfl.parts.mask_rule import MaskRule, copies_of
from hetfl.pruning.densities import Masks, density_of, largest, rescaled
from hetfl.pruning.redistribution import redistributed
from hetfl.question import ClientView, Question
from hetfl.recipe import MaskRecipe, Recipe
from hetfl.seeding import generator
from hetfl.tree import taken
from hetfl.types import Report
from hetfl.updates import Update


@dataclass(frozen=True)
class LayerDensities(Question):
    """The density of every weight after a client's dynamic sparse training from the part that it received.

    Attributes:
        layers: number of weights.
        epochs: passes over the client's data; an exchange of entries follows each but the last.
        lr: learning rate of plain SGD.
        batch: samples of a step.
        share: of the held entries that the first exchange concerns; it falls to 0 evenly.
    """

    uses_model: ClassVar[bool] = True
    backward: ClassVar[bool] = True
    layers: int
    epochs: int
    lr: float
    batch: int
    share: float

    @property
    def size(self) -> int:  # noqa: D102
        return self.layers

    @property
    def passes(self) -> int:  # noqa: D102
        return self.epochs

    def answer(self, client: ClientView) -> Tensor:  # noqa: D102
        assert client.net is not None, "uses_model"
        parameters = {name: each for name, each in client.net.named_parameters() if each.requires_grad}
        whole = {name: torch.ones_like(each, dtype=torch.bool) for name, each in parameters.items() if each.dim() > 1}
        masks: Masks = {name: client.held.get(name, mask).cpu() for name, mask in whole.items()}
        samples = list(client.batches)
        for epoch in range(self.epochs):
            for inputs, targets in samples:
                for rows in torch.randperm(len(targets), generator=client.random).split(self.batch):
                    if len(rows) > 1:  # batch norm cannot normalise a single value
                        self._step(client, parameters, masks, (taken(inputs, rows), targets[rows]))
            if epoch + 1 < self.epochs:
                share = self.share * (1.0 - epoch / self.epochs)
                masks = redistributed({name: parameters[name] for name in masks}, masks, share, client.random)
                _clear(parameters, masks)
        return torch.tensor([float(mask.double().mean()) for mask in masks.values()], dtype=torch.float64)

    def _step(
        self, client: ClientView, parameters: Mapping[str, Tensor], masks: Masks, batch: tuple[Any, Tensor]
    ) -> None:
        loss = cross_entropy(client.scores(*batch, "HuntedMask"), batch[1])
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            for each, gradient in zip(parameters.values(), gradients, strict=True):
                each.sub_(gradient, alpha=self.lr)
        _clear(parameters, masks)


@torch.no_grad()
def _clear(parameters: Mapping[str, Tensor], masks: Masks) -> None:
    for name, mask in masks.items():
        parameters[name].masked_fill_(~mask.to(parameters[name].device), 0.0)


class HuntedMask(MaskRule):
    r"""The first clients train with masks whose entries move between layers; all others use the densities they found.

    Before the first round, a share ``hunters`` of its cohort trains the initial model with one random mask of the
    level's density for ``epochs`` passes. After each pass a client drops the smallest of all its held values, and holds
    as many random entries in their place. It sends the density :math:`d_{k,l}` of every weight l, and nothing else. The
    server's densities are :math:`d_l \propto \frac{1}{m} \sum_k d_{k,l}`, scaled to the density of the level, and the
    mask is random with these densities. It needs no positions: a seed and the densities give it. The weights are still
    the initial ones.

    With ``every = 0`` the mask stays (SPDST). Otherwise clients have masks of their own (JMWST), which begin as the
    common one: after each round in which it takes part, a client's mask exchanges a share ``exchange`` of its entries
    as above, by the values that it trained. Every ``every`` rounds the server takes the mean densities of the masks of
    the round's clients, and holds the largest weights of its model with these densities; all clients begin with this
    mask again.

    Babakniya, Kundu, Prakash, Niu, Avestimehr: Revisiting Sparsity Hunting in Federated Learning: Why does Sparsity
    Consensus Matter?, TMLR 2023. As in the paper: both stages and both variants. Not as in the paper: the hunters
    are of the first cohort, and train with plain SGD.

    Args:
        hunters: share of the first cohort, rounded up, in (0, 1].
        epochs: passes of a hunter over its data.
        lr: learning rate of the hunters.
        batch: samples of a hunter's step.
        share: of the held entries that the first exchange of a hunter concerns, in (0, 1); it falls to 0 evenly.
        exchange: share of its entries that a client exchanges after a round, in (0, 1).
        every: rounds between two common masks; 0: the mask stays.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    asks_clients = True
    _needs_whole_levels: ClassVar[bool] = True

    def __init__(
        self,
        hunters: float = 0.1,
        epochs: int = 10,
        lr: float = 0.1,
        batch: int = 32,
        share: float = 0.25,
        exchange: float = 0.25,
        every: int = 0,
    ) -> None:
        if not 0.0 < hunters <= 1.0 or epochs < 1 or not 0.0 < lr < math.inf or batch < 1 or every < 0:
            raise ConfigurationError(
                "Expected hunters in (0, 1], epochs and batch of at least 1, lr above 0 and every not below 0 but got "
                f"{hunters}, {epochs}, {batch}, {lr}, {every}"
            )
        if not 0.0 < share < 1.0 or not 0.0 < exchange < 1.0:
            raise ConfigurationError(f"Expected share and exchange in (0, 1) but got {share}, {exchange}")
        self.hunters, self.epochs, self.lr, self.batch, self.share = hunters, epochs, lr, batch, share
        self.exchange, self.every = exchange, every
        self.personal = self.follows_clients = every > 0
        self._masks, self._observed, self._round, self._hunted = ClientMasks(), list[int](), 0, False
        self._begun: list[dict[str, Tensor]] = []  # by model
        self._recipe: MaskRecipe | None = None

    def first_masks(self) -> dict[float, dict[str, Tensor]]:  # noqa: D102
        sizes = {name: weight.numel() for name, weight in self.weights.items()}
        self._draw(dict.fromkeys(sizes, self.sparse[0]), -1)
        return {self.sparse[0]: self._drawn(sizes)}

    def _draw(self, densities: Mapping[str, float], round: int) -> None:
        self._recipe = MaskRecipe(self.random_seed(round), densities)

    def _drawn(self, sizes: Mapping[str, int]) -> dict[str, Tensor]:
        """Return the masks that the recipe draws; an empty one keeps its first entry."""
        assert self._recipe is not None
        drawn = self._recipe.mask(sizes).split(list(sizes.values()))
        masks = {name: each.view(self.shapes[name]) for name, each in zip(sizes, drawn, strict=True)}
        return {name: mask if bool(mask.any()) else largest(mask.float(), 1) for name, mask in masks.items()}

    def masked(self, level: str, masks: Masks) -> Part:  # noqa: D102
        part = super().masked(level, masks)
        return part if self._recipe is None else Part(part, part.mask_D, Recipe(mask=self._recipe))

    def begin(self) -> None:
        """Set the entries outside of the common mask to zero, if it is found and no client has a mask of its own."""
        if self._hunted and not self._masks:
            self.clear_pruned()

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        super().begin_round(round, lr)
        self._round, self._observed = round, []

    def consult(self, round: int, cohort: Sequence[int], probe: AskingProbe) -> None:
        """Have the first clients hunt, before the first round."""
        sparse = [client for client in cohort if self.levels[probe.level(client)].density < 1.0]
        if not self._hunted and sparse:
            question = LayerDensities(len(self.mask), self.epochs, self.lr, self.batch, self.share)
            answers = probe.answers(sparse[: math.ceil(self.hunters * len(sparse))], question).values()
            if valid := [answer for answer in answers if bool((answer > 0).all())]:
                self._find(dict(zip(self.mask, torch.stack(valid).mean(0).tolist(), strict=True)), round)
        if self.every:
            self._begun = copies_of(self.models)

    def _find(self, densities: Mapping[str, float], round: int) -> None:
        sizes = {name: mask.numel() for name, mask in self.mask.items()}
        self._draw(rescaled(densities, sizes, self.sparse[0]), round)
        self.hold({self.sparse[0]: self._drawn(sizes)})
        self._hunted = True

    def of_client(self, client: int, density: float) -> Masks | None:  # noqa: D102
        return self._masks.get(client)

    def observe(self, update: Update, index: Index, report: Report) -> None:
        """Exchange entries of the client's mask, by the values that it trained."""
        if not self.every or not self._hunted or self.levels[report.level].density == 1.0:
            return
        client, values = report.client, client_values(self._begun[report.model], update, index)
        random, held = generator(self.seed, "exchange", self._round, client), self._masks.get(client, self.mask)
        self._masks[client] = redistributed(values, held, self.exchange, random)
        self._observed.append(client)

    def end_round(self, round: int) -> None:
        """Hold the largest weights with the mean densities of the round's clients, if a common mask is due."""
        if self.every and self._observed and (round + 1) % self.every == 0:
            sizes = {name: mask.numel() for name, mask in self.mask.items()}
            counts = [
                {name: int(mask.count_nonzero()) for name, mask in self._masks[c].items()} for c in self._observed
            ]
            means = {name: sum(each[name] for each in counts) / len(counts) / size for name, size in sizes.items()}
            scaled, self._recipe = rescaled(means, sizes, self.sparse[0]), None
            kept = {name: max(1, int(0.5 + scaled[name] * size)) for name, size in sizes.items()}
            self.hold({self.sparse[0]: {n: largest(w.abs().cpu(), kept[n]) for n, w in self.weights.items()}})
            self._masks = ClientMasks()
        if self._hunted and not self._masks:
            self.clear_pruned()

    def columns(self) -> dict[str, float]:
        """Return the density of the common mask over all weights."""
        return {"parts/density": density_of(self.mask)}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        recipe = None if self._recipe is None else [self._recipe.seed, dict(self._recipe.densities)]
        return {**super().state_dict(), "clients": self._masks.packed(), "recipe": recipe, "hunted": self._hunted}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state)
        self._masks, self._hunted = ClientMasks.unpacked(state["clients"], self.shapes), state["hunted"]
        self._recipe = None if state["recipe"] is None else MaskRecipe(*state["recipe"])
