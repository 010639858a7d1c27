"""Selection policies, which choose the clients of a round; one policy per file."""

from hetfl.selection.base import Everyone, Probe, Selection
from hetfl.selection.by_value import ByValue
from hetfl.selection.deadline_aware import DeadlineAware
from hetfl.selection.divfl import DivFL
from hetfl.selection.exclusive import Exclusive
from hetfl.selection.loss_times_size import LossTimesSize
from hetfl.selection.power_of_choice import PowerOfChoice
from hetfl.selection.size_weighted import SizeWeighted
from hetfl.selection.uniform import Uniform

__all__ = [
    "ByValue",
    "DeadlineAware",
    "DivFL",
    "Everyone",
    "Exclusive",
    "LossTimesSize",
    "PowerOfChoice",
    "Probe",
    "Selection",
    "SizeWeighted",
    "Uniform",
]
