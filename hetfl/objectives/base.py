"""The base class of objectives: the form of targets, the loss, and the scores of predictions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from hetfl.errors import ConfigurationError
from hetfl.piece import Piece
from hetfl.runs.headline import Headline


class Objective(Piece):
    """The learning task: the form of targets, the loss of outputs, and the scores of predictions.

    Outputs and targets may have leading dimensions of clients or exits, such as (..., N, K) and (..., N). Results have
    the same leading dimensions.

    Attributes:
        headline: the score by which models are compared.
    """

    target_dims: ClassVar[int] = 2
    """Number of dimensions of a batch of targets: 1 for (N,), 2 for (N, Q)."""

    owns_labels: ClassVar[bool] = False
    """Whether each output is a label, which a client owns if its targets have it. Rules about labels need this."""

    probabilities: ClassVar[bool] = False
    """Whether the K outputs are logits of one distribution, as distillation between exits needs."""

    headline: Headline

    def noun(self, size: int) -> str:
        """Return the number of outputs with a noun, such as "10 classes"."""
        return f"{size} {'output' if size == 1 else 'outputs'}"

    @abstractmethod
    def prepared(self, targets: Tensor, where: str) -> Tensor:
        """Return the targets of a data set in the form that the loss takes.

        Args:
            targets: targets of the data, shape (n, ...).
            where: the part of the data, for messages: ``training`` or ``test``.

        Raises:
            ConfigurationError: the objective does not take targets of this type or shape.
        """

    @abstractmethod
    def size(self, targets: Tensor) -> int:
        """Return the number K of outputs that prepared targets need."""

    def check_size(self, targets: Tensor, size: int, where: str) -> None:
        """Refuse targets that K outputs cannot predict.

        Args:
            targets: prepared targets.
            size: number K of outputs.
            where: the part of the data, for messages.

        Raises:
            ConfigurationError: a target is out of range, or a setting does not fit K.
        """

    def single_labels(self, targets: Tensor) -> Tensor | None:
        """Return the class of each sample, int64, shape (n,), for partitioners by class; None without classes."""
        return None

    def label_counts(self, targets: Tensor, size: int) -> Tensor:
        """Return how many targets have each label, int64, shape (K,); by default every target has every label.

        A client owns the labels that occur in its targets.
        """
        return torch.full((size,), len(targets))

    def batch(self, inputs: Any, targets: Tensor, generator: torch.Generator) -> tuple[Any, Tensor]:
        """Return a training batch for the net and the loss; by default unchanged.

        Args:
            inputs: transformed inputs of N samples.
            targets: prepared targets.
            generator: source of random choices, specific to the client.
        """
        return inputs, targets

    def trial(self, inputs: Any, targets: Tensor) -> tuple[Any, Tensor]:
        """Return a batch for the test of nets before the first round; by default unchanged.

        The batch has every change that :meth:`batch` may make.
        """
        return inputs, targets

    def check_predictions(self, predicted: Callable[[Any], Tensor], inputs: Any, targets: Tensor) -> None:
        """Refuse a net that the objective cannot measure; by default every net is accepted.

        Args:
            predicted: returns the prediction of the largest level for inputs, in evaluation mode.
            inputs: transformed inputs of a few samples, as from :meth:`trial`.
            targets: their prepared targets.

        Raises:
            ConfigurationError: the scores of the net would have no meaning.
        """

    def output_shape(self, targets: Tensor, size: int) -> tuple[int, ...]:
        """Return the shape of the outputs for a batch of targets; by default (N, K)."""
        return (len(targets), size)

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over a batch, shape (...)."""

    def weight(self, targets: Tensor) -> float:
        """Return the weight of a batch in a mean of losses over batches; by default its number of samples."""
        return len(targets)

    @abstractmethod
    def metrics(self, size: int) -> Mapping[str, Metric]:
        """Return new metrics by name, the headline first; they are updated with predictions and targets.

        :meth:`predicted` returns the predictions. :class:`HeadlineOfSums` computes the headline of any objective.
        """

    def predicted(self, outputs: Tensor) -> Tensor:
        """Return predictions in the form that metrics take; by default the outputs."""
        return outputs

    @abstractmethod
    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return M numbers per sample, float64, shape (N, M), whose sums over samples determine the headline.

        The evaluation adds them up per client, so it keeps no outputs.
        """

    @abstractmethod
    def score(self, sums: Tensor) -> Tensor:
        """Return the headline score of sums (..., M), shape (...)."""

    def per_exit(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of each of H exits, shape (..., H), for outputs (..., H, N, ...)."""
        position = targets.dim() - self.target_dims
        heads = outputs.shape[position]
        shape = (*targets.shape[:position], heads, *targets.shape[position:])
        return self.loss(outputs, targets.unsqueeze(position).expand(shape))


class HeadlineOfSums(Metric):
    """The headline of an objective, computed from float64 sums over all samples, like the scores of clients.

    It is NaN where the headline is undefined, such as R² of equal targets.

    Args:
        objective: defines the sums and the score.
    """

    sums: Tensor

    def __init__(self, objective: Objective) -> None:
        super().__init__(sync_on_compute=False)  # every rank evaluates everything
        self.objective = objective
        self.add_state("sums", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add the sums of a batch."""
        self.sums = self.sums + self.objective.sums(outputs, targets).sum(0)

    def compute(self) -> Tensor:
        """Return the headline."""
        return self.objective.score(self.sums)


def expected_targets(what: str, targets: Tensor, where: str, objective: str) -> ConfigurationError:
    """Return the error for targets of a wrong form: what the objective expects, and what it got."""
    return ConfigurationError(
        f"Expected {where} targets as {what} for {objective} but got {targets.dtype} of shape {tuple(targets.shape)}"
    )
