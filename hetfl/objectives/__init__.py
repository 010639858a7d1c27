"""Objectives: the loss, the metrics and the headline score for each kind of target."""

from hetfl.objectives.base import Objective
from hetfl.objectives.classification import Classification
from hetfl.objectives.language_modelling import LanguageModelling
from hetfl.objectives.multi_label import MultiLabel
from hetfl.objectives.regression import Regression
from hetfl.objectives.scores import ClientScores, LevelScores, weighted_mean
from hetfl.runs.headline import Headline

__all__ = [
    "Classification",
    "ClientScores",
    "Headline",
    "LanguageModelling",
    "LevelScores",
    "MultiLabel",
    "Objective",
    "Regression",
    "weighted_mean",
]
