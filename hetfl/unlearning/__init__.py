"""Unlearning of a class by pruning the channels that speak for it."""

from hetfl.unlearning.asking import mean_activations, readers_of, telling_channels
from hetfl.unlearning.scoring import class_accuracies, of_class

__all__ = ["class_accuracies", "mean_activations", "of_class", "readers_of", "telling_channels"]
