"""What pruning needs: scores of entries, densities of layers, schedules, gradients."""

from hetfl.pruning.schedules import Cubic, DensitySchedule

__all__ = ["Cubic", "DensitySchedule"]
