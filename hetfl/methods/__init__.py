"""Methods: one paper, one file."""

from hetfl.methods.fedavg import FedAvg
from hetfl.methods.heterofl import HeteroFL

__all__ = ["FedAvg", "HeteroFL"]
