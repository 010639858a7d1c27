"""FedDU: after the mean, the server also trains on its own samples, and takes a share of that step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.hooks.base import Hook
from hetfl.layout import Index
from hetfl.piece import Facts
from hetfl.question import ClientProbe, ClientView, Question
from hetfl.seeding import generator
from hetfl.submodel import state_of
from hetfl.types import Report
from hetfl.updates import Update


def divergence(p_K: Tensor, q_K: Tensor) -> float:
    r"""Return the Jensen-Shannon divergence of two distributions, in bits, from 0 to 1.

    >>> round(divergence(torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])), 6)
    0.146793
    """
    middle_K = (p_K.double() + q_K.double()) / 2

    def relative(p_K: Tensor) -> float:
        held = p_K > 0
        return float((p_K[held] * (p_K[held] / middle_K[held]).log2()).sum())

    return max(0.0, (relative(p_K.double()) + relative(q_K.double())) / 2)


def server_share(accuracy: float, samples: tuple[float, float], divergences: tuple[float, float]) -> float:
    r"""Return :math:`(1 - a)\, n_0 D' / (n_0 D' + n' D_0)`; 0 if the divisor is 0.

    Args:
        accuracy: a, of the mean model on the server's samples.
        samples: of the server, :math:`n_0`, and of the cohort, :math:`n'`.
        divergences: from the labels of all, of those of the server, :math:`D_0`, and of the cohort, :math:`D'`.

    >>> round(server_share(0.4, (100, 900), (0.007299, 0.146793)), 4)
    0.4145
    """
    (own, others), (of_server, of_cohort) = samples, divergences
    divisor = own * of_cohort + others * of_server
    return max(0.0, 1.0 - accuracy) * own * of_cohort / divisor if divisor > 0 else 0.0


@dataclass(frozen=True)
class LabelCounts(Question):
    """The number of a client's samples of each class: K numbers.

    Attributes:
        classes: K.
    """

    classes: int

    @property
    def size(self) -> int:  # noqa: D102
        return self.classes

    def answer(self, client: ClientView) -> Tensor:  # noqa: D102
        return torch.cat([targets.cpu() for _, targets in client.batches]).bincount(minlength=self.classes).double()


class FedDU(Hook):
    r"""Moves the mean model towards one that the server trained on its samples, less as the model gets better.

    .. math:: \theta \leftarrow \bar\theta + \alpha_t (\theta_{\text{srv}} - \bar\theta), \qquad
        \alpha_t = (1 - a_t) \frac{n_0 D(\bar P')}{n_0 D(\bar P') + n' D(P_0)}\, C\, d^t

    with :math:`\bar\theta` the model after the mean, :math:`\theta_{\text{srv}}` the same after epochs of SGD on the
    server's samples, :math:`a_t` the accuracy of :math:`\bar\theta` on them, :math:`n_0` their number, n' that of the
    cohort's samples, and D the Jensen-Shannon divergence of the server's (:math:`P_0`) or the cohort's labels
    (:math:`\bar P'`) from the labels of all known clients. A step below ``least``, or one that makes the server's loss
    ``worst`` times as large, is not taken. Entries without holders do not move, nor do float buffers and, with
    ``per_level``, the copies of smaller levels.

    Zhang et al.: FedDUAP, IJCAI 2022 (arXiv 2204.11536), with the constants of its code, which moves to the trained
    model in one step. Made for the server optimizer SGD(lr=1). Needs ``data.server_fraction``, one class per sample,
    one global model, and clients that answer questions; every client within reach sends the counts of its labels once,
    K numbers, which it may not want to reveal. The server's own training is free.

    Column: ``feddu/alpha``, 0 for a step that was not taken.

    Args:
        scale: C.
        decay: d.
        epochs: passes over the server's samples.
        batch_size: of a step.
        least: smallest α.
        worst: largest ratio of the server's loss after and before the step.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    reads_server_data = True
    asks_clients = True

    def __init__(
        self,
        scale: float = 1.0,
        decay: float = 0.99,
        epochs: int = 1,
        batch_size: int = 20,
        least: float = 0.001,
        worst: float = 3.0,
    ) -> None:
        if not 0 < scale < float("inf") or not 0 < decay <= 1 or epochs < 1 or batch_size < 1:
            raise ConfigurationError(
                "Expected scale above 0, decay in (0, 1], and epochs and batch_size of at least 1 for FedDU but got "
                f"{scale}, {decay}, {epochs}, {batch_size}"
            )
        if not 0 <= least < 1 or not worst > 0:
            raise ConfigurationError(f"Expected least in [0, 1) and worst above 0 for FedDU but got {least}, {worst}")
        self.scale, self.decay, self.epochs, self.batch_size = scale, decay, epochs, batch_size
        self.least, self.worst = least, worst
        self.counts: dict[int, list[float]] = {}  # by client, samples of each class
        self._all_K = torch.zeros(0, dtype=torch.float64)  # their sum
        self._of: tuple[Sequence[int], int] = (), 0  # the sizes of the clients and K that they belong to
        self.alpha = 0.0

    def setup(self, facts: Facts) -> None:
        """Set the server's samples and the model; with other data than before, no labels of clients are known.

        Raises:
            ConfigurationError: targets are not classes, one per sample.
        """
        if not facts.classes:
            raise ConfigurationError("Expected classes as targets for FedDU, which compares labels, but got others")
        assert facts.server_data is not None, "pieces that read the server's data are refused without it"
        self.facts, samples = facts, len(facts.server_data)
        _, targets = facts.server_data.batch(torch.arange(samples))
        if targets.dim() != 1 or targets.is_floating_point():
            raise ConfigurationError(
                f"Expected one class per sample as targets for FedDU but got {targets.dtype} {tuple(targets.shape[1:])}"
            )
        if (of := (tuple(facts.sizes), facts.classes)) != self._of:
            self._of = of
            self.learn({}, anew=True)
        self._own_K = targets.cpu().bincount(minlength=facts.classes).double()

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self._round, self._lr, self._cohort, self.alpha = round, lr, list[int](), 0.0

    def inquire(self, round: int, cohort: Sequence[int], probe: ClientProbe) -> None:
        """Ask the clients within reach, whose labels are not known yet, for their counts."""
        asked = [client for client in probe.clients if client not in self.counts]
        answers = probe.answers(asked, LabelCounts(self.facts.classes)) if asked else {}
        self.learn({client: n.tolist() for client, n in answers.items() if bool((n >= 0).all()) and n.sum() > 0})

    def learn(self, counts: Mapping[int, Sequence[float]], anew: bool = False) -> None:
        """Note the samples of each class of clients that are not known yet; with ``anew``, forget all others."""
        if anew:
            self.counts, self._all_K = {}, torch.zeros(self.facts.classes, dtype=torch.float64)
        self.counts |= {client: list(each) for client, each in counts.items()}
        counts_nK = torch.tensor([*counts.values()], dtype=torch.float64).reshape(-1, self.facts.classes)
        self._all_K = self._all_K + counts_nK.sum(0)

    def observe(self, update: Update, index: Index, report: Report) -> None:
        """Note a client of the cohort.

        Raises:
            ConfigurationError: its update is of another global model than the first.
        """
        if report.model:
            raise ConfigurationError(f"Expected one global model for FedDU but got an update of model {report.model}")
        self._cohort.append(report.client)

    def mixes(self) -> tuple[Tensor, Tensor]:
        """Return the samples of each class of the cohort, and of all known clients, float64, shape (K,) each."""
        zeros = torch.zeros(self.facts.classes, dtype=torch.float64)
        cohort = [torch.tensor(self.counts[k], dtype=torch.float64) for k in self._cohort if k in self.counts]
        return sum(cohort, zeros), self._all_K

    def share(self, accuracy: float) -> float:
        """Return α of the round; 0 while no labels of the cohort are known."""
        cohort_K, all_K = self.mixes()
        if not cohort_K.sum():
            return 0.0
        parts = [each / each.sum() for each in (self._own_K, cohort_K)]
        of_server, of_cohort = (divergence(part, all_K / all_K.sum()) for part in parts)
        samples = (float(self._own_K.sum()), float(cohort_K.sum()))
        return server_share(accuracy, samples, (of_server, of_cohort)) * self.scale * self.decay**self._round

    def on_step(self, model: int, delta: dict[str, Tensor], holders: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the step with the server's share added."""
        facts = self.facts
        assert facts.utility is not None, "it comes with the server's samples"
        assert facts.tuning is not None, "it comes with the server's samples"
        begun = {name: tensor.detach() for name, tensor in state_of(facts.models[0]).items() if name in delta}
        mean = {name: begun[name] + delta[name] for name in begun}
        accuracy, loss = facts.utility(mean)
        if (alpha := self.share(accuracy)) <= self.least:
            return delta
        random = generator(facts.seed, "FedDU", self._round)
        tuned = facts.tuning(mean, self._lr, self.epochs, self.batch_size, random)
        moved = {name: mean[name] + alpha * (tuned[name] - mean[name]) for name in mean if name in tuned}
        if not facts.utility({**mean, **moved})[1] <= self.worst * loss:
            return delta
        self.alpha = alpha
        return {**delta, **{name: moved[name] - begun[name] for name in moved}}

    def columns(self) -> dict[str, float]:  # noqa: D102
        return {"feddu/alpha": self.alpha}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        counts_nK = torch.tensor([*self.counts.values()], dtype=torch.float64).reshape(-1, self.facts.classes)
        return {"clients": torch.tensor([*self.counts], dtype=torch.int64), "counts": counts_nK}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        if "clients" in state:
            self.learn(dict(zip(state["clients"].tolist(), state["counts"].tolist(), strict=True)), anew=True)
        else:  # of an earlier version
            self.learn(state["counts"], anew=True)
