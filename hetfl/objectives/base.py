"""What an objective is: what the targets are, the loss, and the scores of predictions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from hetfl.errors import ConfigurationError
from hetfl.piece import Piece
from hetfl.runs.headline import Headline


class Objective(Piece):
    """What a federation learns: how targets look, the loss of outputs, and the scores of predictions.

    Outputs and targets may have leading dimensions, of clients or of exits: (..., N, K) and (..., N), say. What is
    returned for them has these dimensions.

    Attributes:
        headline: the score by which models are compared.
    """

    target_dims: ClassVar[int] = 2
    """Dimensions of a batch's targets: 1 for (N,), 2 for (N, Q)."""

    owns_labels: ClassVar[bool] = False
    """Whether clients own some of the K outputs: classes that their targets have. Rules about labels need it."""

    probabilities: ClassVar[bool] = False
    """Whether the K outputs are logits of one distribution, which exits can distil into each other."""

    headline: Headline

    def noun(self, size: int) -> str:
        """Return in words what K outputs are for."""
        return f"{size} {'output' if size == 1 else 'outputs'}"

    @abstractmethod
    def prepared(self, targets: Tensor, where: str) -> Tensor:
        """Return a data set's targets as the loss takes them.

        Args:
            targets: as the data has them, shape (n, ...).
            where: whose they are, for the message: ``training`` or ``test``.

        Raises:
            ConfigurationError: their type or shape is that of another objective.
        """

    @abstractmethod
    def size(self, targets: Tensor) -> int:
        """Return the number K of outputs that prepared targets need."""

    def check_size(self, targets: Tensor, size: int, where: str) -> None:
        """Refuse targets that K outputs cannot predict.

        Args:
            targets: prepared ones.
            size: number K of outputs.
            where: whose they are.

        Raises:
            ConfigurationError: they cannot.
        """

    def single_labels(self, targets: Tensor) -> Tensor | None:
        """Return the class of each sample, int64, shape (n,), for partitioners by class; None: there is no such."""
        return None

    def label_counts(self, targets: Tensor, size: int) -> Tensor:
        """Return how many targets have each of the K outputs as a label, int64, shape (K,): by default all have all.

        A client owns the labels that it has a target of.
        """
        return torch.full((size,), len(targets))

    def batch(self, inputs: Any, targets: Tensor, generator: torch.Generator) -> tuple[Any, Tensor]:
        """Return a batch as the net and the loss take it: by default as it is.

        Args:
            inputs: transformed inputs of N samples.
            targets: prepared targets.
            generator: for random choices, the client's own.
        """
        return inputs, targets

    def trial(self, inputs: Any, targets: Tensor) -> tuple[Any, Tensor]:
        """Return a batch on which nets are tried before the first round: by default as it is.

        It has every change that :meth:`batch` may make.
        """
        return inputs, targets

    def output_shape(self, targets: Tensor, size: int) -> tuple[int, ...]:
        """Return the shape of outputs for a batch's targets: by default (N, K)."""
        return (len(targets), size)

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over a batch, shape (...)."""

    def weight(self, targets: Tensor) -> float:
        """Return by what a batch's loss counts in a mean over batches: by default its number of samples."""
        return len(targets)

    @abstractmethod
    def metrics(self, size: int) -> Mapping[str, Metric]:
        """Return new metrics by name, the headline's first; they take what :meth:`predicted` returns, and targets.

        :class:`HeadlineOfSums` is a metric of any objective's headline.
        """

    def predicted(self, outputs: Tensor) -> Tensor:
        """Return outputs as metrics take them: by default as they are."""
        return outputs

    @abstractmethod
    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return numbers of each sample, float64, shape (N, M), whose sums over samples tell the headline.

        Samples of clients are added up client by client, so no outputs are kept.
        """

    @abstractmethod
    def score(self, sums: Tensor) -> Tensor:
        """Return the headline of sums (..., M), shape (...)."""

    def per_exit(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of each of H exits, shape (..., H), of outputs (..., H, N, ...)."""
        position = targets.dim() - self.target_dims
        heads = outputs.shape[position]
        shape = (*targets.shape[:position], heads, *targets.shape[position:])
        return self.loss(outputs, targets.unsqueeze(position).expand(shape))


class HeadlineOfSums(Metric):
    """The headline of an objective, of the sums over all samples in float64: as clients' scores are.

    Where the headline is not defined for so few samples, or samples so much alike, it is NaN.

    Args:
        objective: has the sums.
    """

    sums: Tensor

    def __init__(self, objective: Objective) -> None:
        super().__init__(sync_on_compute=False)  # every rank evaluates everything
        self.objective = objective
        self.add_state("sums", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add up what the objective sums up of each sample."""
        self.sums = self.sums + self.objective.sums(outputs, targets).sum(0)

    def compute(self) -> Tensor:
        """Return the headline."""
        return self.objective.score(self.sums)


def expected_targets(what: str, targets: Tensor, where: str, objective: str) -> ConfigurationError:
    """Return the error that names what targets an objective expects, and what came."""
    return ConfigurationError(
        f"Expected {where} targets as {what} for {objective} but got {targets.dtype} of shape {tuple(targets.shape)}"
    )
