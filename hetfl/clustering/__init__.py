"""Clustering policies, which choose the clients that share a global model; one policy per file."""

from hetfl.clustering.base import Clustering, ClusterProbe, NewModel, OneCluster
from hetfl.clustering.clustered_fl import ClusteredFL
from hetfl.clustering.ifca import IFCA

__all__ = ["IFCA", "ClusterProbe", "ClusteredFL", "Clustering", "NewModel", "OneCluster"]
