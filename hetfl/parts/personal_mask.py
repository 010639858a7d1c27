"""Sub-FedAvg: every client prunes a mask of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.parts.base import AskingProbe
from hetfl.parts.client_masks import ClientMasks
from hetfl.parts.client_values import client_values
from hetfl.parts.held_out import HeldOutAccuracy, with_held_out
from hetfl.parts.mask_rule import MaskRule, weights_of
from hetfl.piece import Facts
from hetfl.pruning.channels import channel_groups
from hetfl.pruning.channels.masks import ScaledChannels
from hetfl.pruning.densities import Masks, best, largest
from hetfl.submodel import parameters_of
from hetfl.types import Report
from hetfl.updates import Update


class PersonalMask(MaskRule):
    r"""Every client has a mask of its own, which shrinks by a step each time that the client has learned enough.

    A client begins with all entries. After a round in which it took part, its mask loses the entries with the smallest
    of the values that it trained, in every weight alone, if

    - its density is above that of its level, which is the target and is never passed;
    - its mean training loss was at most ``loss``, and the accuracy on its held-out samples of the sub-model that it
      received is at least ``accuracy``;
    - the masks by the values before and after its training differ in more than a share ``distance`` of the entries.

    Each step removes a share ``step`` of all entries. Pruned entries never return. The server keeps all entries; an
    entry's mean is over its holders.

    With ``channels`` the variant is hybrid: the first step of a client removes a share of the channels of every group
    that has a norm layer, those with the smallest absolute norm scales after training, with the entries that write or
    read them. Convolutions lose nothing else. All other weights lose entries by steps of what the channels left.

    Vahidian, Morafah, Lin: Personalized Federated Learning by Structured and Unstructured Pruning under Data
    Heterogeneity, ICDCS Workshops 2021 (arXiv 2105.00562), Sub-FedAvg (Un) and (Hy). As in the paper: steps, target,
    distance of masks, mean over holders. Not as in the paper: the distance is between the start and the end of a round,
    not between epochs, and is one for channels and entries; accuracies are those of held-out training samples before
    training, because the published code decides by test accuracy.

    Args:
        step: share of all entries that a step removes, in (0, 1).
        loss: largest mean training loss of a client that prunes; None: any.
        distance: share of entries in which the two masks must differ, in [0, 1).
        accuracy: smallest accuracy of a client that prunes, in [0, 1]; None: any, and clients are not asked.
        channels: share of the channels of a group that the first step removes, in [0, 1); 0: entries alone.

    Raises:
        ConfigurationError: a setting is out of its range; in a run: no client holds samples out, or the net has no
            channels with a norm layer.
    """

    personal = True
    follows_clients = True

    several_densities: ClassVar[bool] = True

    def __init__(
        self,
        step: float = 0.1,
        loss: float | None = None,
        distance: float = 1e-4,
        accuracy: float | None = None,
        channels: float = 0.0,
    ) -> None:
        if not 0.0 < step < 1.0 or not 0.0 <= distance < 1.0 or (loss is not None and loss <= 0):
            raise ConfigurationError(
                "Expected step in (0, 1), distance in [0, 1) and loss above 0 or null but got "
                f"{step}, {distance}, {loss}"
            )
        if not 0.0 <= channels < 1.0 or (accuracy is not None and not 0.0 <= accuracy <= 1.0):
            raise ConfigurationError(
                f"Expected channels in [0, 1) and accuracy in [0, 1] or null but got {channels}, {accuracy}"
            )
        self.step, self.loss, self.distance, self.accuracy, self.channels = step, loss, distance, accuracy, channels
        self.asks_clients, self._scope = accuracy is not None, None if channels else "layer"
        self._masks, self._cut, self._holding_out = ClientMasks(), ClientMasks(), frozenset[int]()
        self._steps: dict[int, int] = {}
        self._begun: list[dict[str, Tensor]] = []  # by model
        self._accurate: frozenset[int] | None = None  # clients that reach the accuracy in the round; None: any
        self._scaled: ScaledChannels | None = None

    def setup(self, facts: Facts) -> None:  # noqa: D102
        super().setup(facts)
        if self.accuracy is not None and facts.rounds is not None:
            self._holding_out = with_held_out(facts, type(self).__name__)

    def first_masks(self) -> dict[float, dict[str, Tensor]]:  # noqa: D102
        return dict.fromkeys(self.sparse, self.whole())

    def of_client(self, client: int, density: float) -> Masks | None:  # noqa: D102
        return self._masks.get(client)

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        super().begin_round(round, lr)
        kinds = [parameters_of(net) if self.channels else weights_of(net) for net in self.models]
        self._begun = [{name: value.detach().clone() for name, value in values.items()} for values in kinds]

    def consult(self, round: int, cohort: Sequence[int], probe: AskingProbe) -> None:
        """Ask the clients that may prune for their accuracy, if it counts."""
        if self.accuracy is None:
            return
        able = [c for c in cohort if c in self._holding_out and self._next(c, self.levels[probe.level(c)].density)]
        answers = probe.answers(able, HeldOutAccuracy())
        self._accurate = frozenset(client for client, (each,) in answers.items() if float(each) >= self.accuracy)

    def _next(self, client: int, target: float) -> float | None:
        """Return the density of a client after its next step; None: it has reached the target."""
        steps = self._steps.get(client, 0)
        following = max(target, 1.0 - (steps + 1) * self.step)
        return following if following < max(target, 1.0 - steps * self.step) else None

    def observe(self, update: Update, index: Index, report: Report) -> None:
        """Prune the client's mask by the values that it trained, if it has learned enough."""
        client, target = report.client, self.levels[report.level].density
        density = self._next(client, target)
        learned = (self.loss is None or report.loss <= self.loss) and (
            self._accurate is None or client in self._accurate
        )
        if density is None or not learned:
            return
        held, values = self._masks.get(client) or self.held(target), [self._begun[report.model]]
        values.append(client_values(values[0], update, index))
        cuts = [self._cut_of(client, each) for each in values]
        before, after = (self._pruned(held, each, density, cut) for each, cut in zip(values, cuts, strict=True))
        differing = sum(int((before[name] != after[name]).count_nonzero()) for name in after)
        if differing > self.distance * sum(mask.numel() for mask in after.values()):
            self._masks[client], self._steps[client] = after, self._steps.get(client, 0) + 1
            self._cut[client] = cuts[1]

    def _cut_of(self, client: int, values: Mapping[str, Tensor]) -> Masks:
        """Return the masks without the channels that a client lost in its first step, or would lose in it."""
        if not self.channels:
            return {}
        return self._cut.get(client) or self._channels().masks(values, self.channels)

    def _pruned(self, held: Masks, values: Mapping[str, Tensor], density: float, cut: Masks) -> dict[str, Tensor]:
        """Return masks of a density among the entries that the cut channels leave."""
        if not cut:
            sizes = {name: values[name].abs().cpu().masked_fill(~mask, -1.0) for name, mask in held.items()}
            return best(sizes, "layer", density)
        whole = {name: mask & cut[name] if name in cut else mask for name, mask in held.items()}
        for name in whole.keys() - self._channels().convolutions:
            entries = int(cut[name].count_nonzero()) if name in cut else whole[name].numel()
            left = values[name].abs().cpu().masked_fill(~whole[name], -1.0)
            whole[name] = largest(left, max(1, round(density * entries))) & whole[name]
        return whole

    def _channels(self) -> ScaledChannels:
        if self._scaled is None:
            assert self.levels.samples is not None, "a run has samples"
            net = self.levels.net
            self._scaled = ScaledChannels(channel_groups(net, self.levels.samples), parameters_of(net))
        return self._scaled

    def columns(self) -> dict[str, float]:
        """Return the mean density of the masks of all clients that pruned, over all weights."""
        return {"parts/density": self._masks.density()}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        masks = {"clients": self._masks.packed(), "cut": self._cut.packed()}
        return {**super().state_dict(), **masks, "steps": dict(self._steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state)
        self._masks = ClientMasks.unpacked(state["clients"], self.shapes)
        self._steps = dict(state["steps"])
        self._cut = ClientMasks.unpacked(state["cut"], self.shapes)
