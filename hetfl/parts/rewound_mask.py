"""LotteryFL: every client prunes its sub-model, and trains the entries that stay from their first values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.parts.base import AskingProbe
from hetfl.parts.client_masks import ClientMasks
from hetfl.parts.held_out import HeldOutAccuracy, with_held_out
from hetfl.parts.mask_rule import MaskRule, weights_of
from hetfl.piece import Facts
from hetfl.pruning.densities import Masks, best, density_of
from hetfl.submodel import parameters_of
from hetfl.types import Report
from hetfl.updates import Update


class RewoundMask(MaskRule):
    r"""Every client has a mask of its own; when it shrinks, the client trains from the first values of the run.

    At the start of a round, a client of the cohort whose density is above that of its level measures the accuracy of
    the sub-model that it receives on its held-out samples. If it is at least ``accuracy``, the client loses a share
    ``step`` of the entries that it holds in every weight, those with the smallest received values, and trains from
    :math:`\theta^0 \odot m_k` in place of :math:`\theta^t \odot m_k`. A client that lost entries and sends no update
    begins with the first values again when it next takes part. The first values are those of the client's global model.
    The density of the level is never passed, and pruned entries never return. The server keeps all entries; with the
    mean over holders,

    .. math:: \theta^{t+1}_j = \frac{\sum_k m_{k,j} \theta_{k,j}}{\sum_k m_{k,j}},

    and an entry that nobody holds keeps its value.

    Li, Sun, Wang, Duan, Li, Chen, Li: LotteryFL: Personalized and Communication-Efficient Federated Learning with
    Lottery Ticket Hypothesis on Non-IID Datasets, 2020 (arXiv 2008.03371), algorithm 1. Not as in the published code:
    decisions use held-out training samples, not test samples.

    Args:
        step: share of the held entries of every weight that a client loses at once, in (0, 1).
        accuracy: smallest accuracy at which a client prunes, in [0, 1].

    Raises:
        ConfigurationError: a setting is out of its range; in a run: no client holds samples out.
    """

    personal = True
    follows_clients = True
    asks_clients = True

    several_densities: ClassVar[bool] = True
    _scope = "layer"

    def __init__(self, step: float = 0.2, accuracy: float = 0.2) -> None:
        if not 0.0 < step < 1.0 or not 0.0 <= accuracy <= 1.0:
            raise ConfigurationError(f"Expected step in (0, 1) and accuracy in [0, 1] but got {step}, {accuracy}")
        self.step, self.accuracy = step, accuracy
        self._masks, self._rewound = ClientMasks(), dict[int, int]()  # the global model of clients that lost entries
        self._holding_out = frozenset[int]()
        self._first: list[dict[str, Tensor]] = []  # by model

    def setup(self, facts: Facts) -> None:  # noqa: D102
        super().setup(facts)
        if facts.rounds is not None:
            self._holding_out = with_held_out(facts, type(self).__name__)

    def first_masks(self) -> dict[float, dict[str, Tensor]]:  # noqa: D102
        return dict.fromkeys(self.sparse, self.whole())

    def of_client(self, client: int, density: float) -> Masks | None:  # noqa: D102
        return self._masks.get(client)

    def begin_round(self, round: int, lr: float) -> None:
        """Note the first values of new global models."""
        super().begin_round(round, lr)
        for net in list(self.models)[len(self._first) :]:
            self._first.append({name: each.detach().clone() for name, each in parameters_of(net).items()})

    def consult(self, round: int, cohort: Sequence[int], probe: AskingProbe) -> None:
        """Ask the clients that may prune for their accuracy, and prune the masks of those that reach it."""
        self._rewound |= {client: probe.model(client) for client in cohort if client in self._rewound}
        targets = {client: self.levels[probe.level(client)].density for client in cohort if client in self._holding_out}
        above = [client for client, target in targets.items() if self._density(client, target) > target]
        for client, (accuracy,) in probe.answers(above, HeldOutAccuracy()).items():
            if float(accuracy) >= self.accuracy:
                held = self._masks.get(client) or self.held(targets[client])
                density = max(targets[client], (1.0 - self.step) * density_of(held))
                model = probe.model(client)
                received = weights_of(self.models[model])
                sizes = {name: received[name].abs().cpu().masked_fill(~mask, -1.0) for name, mask in held.items()}
                self._masks[client] = best(sizes, "layer", density)
                self._rewound[client] = model

    def _density(self, client: int, target: float) -> float:
        """Return the density of a client's masks; that of its level, if rounding leaves nothing to prune."""
        held = self._masks.get(client)
        if held is None:
            return 1.0
        least = sum(max(1, round(target * mask.numel())) for mask in held.values())
        return density_of(held) if sum(int(m.count_nonzero()) for m in held.values()) > least else target

    def first_values(self, client: int) -> Mapping[str, Tensor] | None:  # noqa: D102
        return self._first[self._rewound[client]] if client in self._rewound else None

    def observe(self, update: Update, index: Index, report: Report) -> None:
        """Note that the client has trained from the first values."""
        self._rewound.pop(report.client, None)

    def columns(self) -> dict[str, float]:
        """Return the mean density of the masks of all clients that pruned, over all weights."""
        return {"parts/density": self._masks.density()}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {**self.evaluation_state(), "first": self._first}

    def evaluation_state(self) -> dict[str, Any]:  # noqa: D102
        return {**super().state_dict(), "clients": self._masks.packed(), "rewound": dict(self._rewound)}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state)
        self._masks = ClientMasks.unpacked(state["clients"], self.shapes)
        rewound = state["rewound"]
        self._rewound = dict(rewound) if isinstance(rewound, dict) else dict.fromkeys(rewound, 0)
        if "first" in state:
            self._first = list(state["first"])
        else:  # older checkpoints are of runs that went back to the drawn values of the first model
            drawn = {name: each.detach() for name, each in parameters_of(self.levels.draw()).items()}
            self._first = [drawn] * len(self.models)
