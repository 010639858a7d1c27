"""Local training: what happens on a client, and the executors that run it."""

from hetfl.local.auto import Auto
from hetfl.local.executor import Executor, InProcess, LocalProblem, LocalResult, LocalTask
from hetfl.local.feddyn import FedDyn
from hetfl.local.penalty import Penalty, Proximal
from hetfl.local.sequential import Sequential
from hetfl.local.stacked import Stacked
from hetfl.local.training import LocalTraining
from hetfl.local.workers import Workers

__all__ = [
    "Auto",
    "Executor",
    "FedDyn",
    "InProcess",
    "LocalProblem",
    "LocalResult",
    "LocalTask",
    "LocalTraining",
    "Penalty",
    "Proximal",
    "Sequential",
    "Stacked",
    "Workers",
]
