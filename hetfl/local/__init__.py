"""Local training: a client's work, and the executors that run it."""

from hetfl.local.auto import Auto
from hetfl.local.bench import LocalProblem
from hetfl.local.default import DefaultExecutor
from hetfl.local.executor import Executor, InProcess, Result
from hetfl.local.feddyn import FedDyn
from hetfl.local.importance import ImportanceGradient
from hetfl.local.penalty import NoPenalty, Penalty, Proximal
from hetfl.local.personal import Personal
from hetfl.local.pgd import PGD
from hetfl.local.sequential import Sequential
from hetfl.local.server_training import ServerTraining
from hetfl.local.sparsity import L1, ElasticNet, GroupLasso, Sum
from hetfl.local.stacked import Stacked
from hetfl.local.training import LocalTraining
from hetfl.local.workers import Workers

__all__ = [
    "L1",
    "PGD",
    "Auto",
    "DefaultExecutor",
    "ElasticNet",
    "Executor",
    "FedDyn",
    "GroupLasso",
    "ImportanceGradient",
    "InProcess",
    "LocalProblem",
    "LocalTraining",
    "NoPenalty",
    "Penalty",
    "Personal",
    "Proximal",
    "Result",
    "Sequential",
    "ServerTraining",
    "Stacked",
    "Sum",
    "Workers",
]
