"""What an evaluation measures."""

from hetfl.objectives.accuracy import ClientAccuracy, LevelMetrics, weighted_mean

__all__ = ["ClientAccuracy", "LevelMetrics", "weighted_mean"]
