"""Methods that do not work on Flower, refused before the first round."""

from __future__ import annotations

from hetfl.clustering import OneCluster
from hetfl.compression.staleness import Keep
from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule


def check_federation(module: FederatedModule) -> None:
    """Refuse a module that needs what nodes do not do.

    Args:
        module: the server's.

    Raises:
        ConfigurationError: a client would have several states, the server would need clients' memories, which only the
            nodes have, or gradients or answers to questions, which nodes do not send, frozen parameters change, or
            residuals age by rounds that nodes do not know.
    """
    penalty, clustering = module.penalty, module.clustering
    if module.parts.asks_gradients:
        raise ConfigurationError(
            f"Expected a part rule that needs no gradients on Flower but got {module.parts.describe()}: "
            "nodes send updates, statistics and losses alone"
        )
    if asking := next((piece for piece in module.pieces.values() if piece.asks_clients), None):
        raise ConfigurationError(
            f"Expected no questions to clients on Flower but got {asking.describe()}, which asks them about their "
            "data: nodes send updates, statistics and losses alone"
        )
    if module.aggregator.first.changes_frozen:
        raise ConfigurationError(
            f"Expected an aggregator that changes no frozen parameters on Flower, whose nodes keep theirs, but got "
            f"{type(module.aggregator.first).__name__}"
        )
    if not module.schedule.in_step and not isinstance(module.uplink.staleness, Keep):
        raise ConfigurationError(
            f"Expected staleness Keep on Flower with the schedule {type(module.schedule).__name__} but got "
            f"{type(module.uplink.staleness).__name__}: nodes do not know the round in which an update was accepted"
        )
    if clustering.apart:
        raise ConfigurationError(
            f"Expected one state for each client on Flower but got {type(clustering).__name__}, which keeps several"
        )
    if penalty.memories is not None and not isinstance(clustering, OneCluster):
        raise ConfigurationError(
            f"Expected one global model on Flower for {type(penalty).__name__}, whose memories are with the nodes, "
            f"but got clustering {type(clustering).__name__}"
        )
