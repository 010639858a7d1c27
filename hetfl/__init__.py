"""hetfl: federated learning in which every client trains as much of the model as it can afford."""

from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError
from hetfl.export import load
from hetfl.federation import FederatedModule
from hetfl.methods import DepthFL, FedAvg, HeteroFL
from hetfl.types import Level

__version__ = "0.1.0"
__all__ = [
    "ConfigurationError",
    "DepthFL",
    "FedAvg",
    "FederatedDataModule",
    "FederatedModule",
    "HeteroFL",
    "Level",
    "load",
]
