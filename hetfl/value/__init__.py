"""What a client's data and updates are worth: measures, one per file."""

from hetfl.value.base import Value, Values, finite, values_of_round
from hetfl.value.coalitions import CoalitionValue, LeaveOneOut
from hetfl.value.gradient_cosine import GradientCosine
from hetfl.value.loss_drop import LossDrop
from hetfl.value.reputation import Reputation
from hetfl.value.shapley_value import Shapley

__all__ = [
    "CoalitionValue",
    "GradientCosine",
    "LeaveOneOut",
    "LossDrop",
    "Reputation",
    "Shapley",
    "Value",
    "Values",
    "finite",
    "values_of_round",
]
