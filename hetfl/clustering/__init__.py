"""Which clients share a global model: one policy per file."""

from hetfl.clustering.base import Clustering, ClusterProbe, NewModel, OneCluster
from hetfl.clustering.ifca import IFCA

__all__ = ["IFCA", "ClusterProbe", "Clustering", "NewModel", "OneCluster"]
