"""Criteria: scores of the entries of a model, one per file; the entries with the smallest scores are pruned first."""

from hetfl.pruning.criteria.base import Criterion, Evidence
from hetfl.pruning.criteria.gradient import Gradient
from hetfl.pruning.criteria.gradient_per_time import GradientPerTime
from hetfl.pruning.criteria.magnitude import Magnitude
from hetfl.pruning.criteria.movement import Movement
from hetfl.pruning.criteria.norm_scale import NormScale
from hetfl.pruning.criteria.random_score import RandomScore
from hetfl.pruning.criteria.squared_gradient import SquaredGradient
from hetfl.pruning.criteria.squared_taylor import SquaredTaylor
from hetfl.pruning.criteria.taylor import Taylor

__all__ = [
    "Criterion",
    "Evidence",
    "Gradient",
    "GradientPerTime",
    "Magnitude",
    "Movement",
    "NormScale",
    "RandomScore",
    "SquaredGradient",
    "SquaredTaylor",
    "Taylor",
]
