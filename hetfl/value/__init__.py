"""What a client's data and updates are worth: measures, one per file."""

from hetfl.value.base import Value
from hetfl.value.gradient_cosine import GradientCosine
from hetfl.value.loss_drop import LossDrop
from hetfl.value.reputation import Reputation

__all__ = ["GradientCosine", "LossDrop", "Reputation", "Value"]
