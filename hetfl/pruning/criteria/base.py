"""The base class of criteria, and the evidence that they compute scores from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from hetfl.arguments import choice
from hetfl.piece import described, settings_of

Combination = Literal["mean_of_squares", "square_of_mean"]
"""How clients' gradients become one squared gradient: :math:`\\sum_k p_k g_k^2` or :math:`(\\sum_k p_k g_k)^2`."""

Tensors = Mapping[str, Tensor]
"""Tensors of the global model by name."""


@dataclass(frozen=True)
class Evidence:
    r"""What is known of the entries of the global model. All tensors have the shapes of the model's parameters.

    Attributes:
        weights: the present values w.
        start: the values at the start of the run.
        last: the values one round ago; at the start of the run those of the start.
        gradients: the clients' mean gradient :math:`\sum_k p_k g_k` at the present values; empty: clients sent none.
        squares: the clients' mean squared gradient :math:`\sum_k p_k g_k^2`; empty: clients sent none.
        seconds: seconds that one entry of a tensor costs a client in a round.
        seed: of random scores; a new one in every round.
    """

    weights: Tensors
    start: Tensors = field(default_factory=dict)
    last: Tensors = field(default_factory=dict)
    gradients: Tensors = field(default_factory=dict)
    squares: Tensors = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def squared(self, combine: Combination) -> Tensors:
        """Return the squared gradient of each entry.

        Args:
            combine: how the clients' gradients become one.
        """
        if combine == "mean_of_squares":
            return self.squares
        return {name: gradient.square() for name, gradient in self.gradients.items()}


class Criterion(ABC):
    """Scores the entries of a model. Entries with equal scores are ranked by position, the lower one first."""

    needs_gradients: ClassVar[bool] = False
    """Whether scores depend on gradients, which clients compute and send before they train."""

    needs_history: ClassVar[bool] = False
    """Whether scores depend on earlier values of the weights, and are all zero before the first round."""

    of_norms: ClassVar[bool] = False
    """Whether only the scales of norm layers have scores, which are those of their channels."""

    @property
    def needs_rounds(self) -> bool:
        """Whether there are no scores before the first round: they depend on gradients or on earlier values."""
        return self.needs_gradients or self.needs_history

    @abstractmethod
    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return by name the score of every entry of ``evidence.weights``; not below 0, and finite.

        Args:
            evidence: what is known of the entries.
        """

    def describe(self) -> str:
        """Return the criterion and its settings as short text."""
        return described(type(self).__name__, settings_of(self))


class SquaredCriterion(Criterion):
    """Base class of criteria that depend on the squared gradient.

    Args:
        combine: ``mean_of_squares`` or ``square_of_mean`` over the clients.

    Raises:
        ConfigurationError: ``combine`` is neither of them.
    """

    needs_gradients: ClassVar[bool] = True

    def __init__(self, combine: Combination = "mean_of_squares") -> None:
        self.combine = choice("combine", combine, Combination)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:  # noqa: D102
        squares = evidence.squared(self.combine)
        return {name: self.score(squares[name], name, evidence) for name in evidence.weights}

    @abstractmethod
    def score(self, square: Tensor, name: str, evidence: Evidence) -> Tensor:
        """Return the scores of a weight's entries.

        Args:
            square: the squared gradient of each entry.
            name: of the weight.
            evidence: what else is known.
        """
