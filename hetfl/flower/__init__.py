"""A federation on real devices: server and clients exchange messages of Flower (extra ``flower``).

The server runs the same :class:`~hetfl.FederatedModule` rounds as a simulation, with clients on remote nodes
(:class:`~hetfl.flower.clients.FlowerClients`). A node runs the same local training, error feedback and encoding
(:class:`~hetfl.flower.node.Node`), and keeps its clients' states on its disk
(:class:`~hetfl.flower.states.ClientStates`). See ``docs/deployment.md``.

The rest of hetfl imports this package only for ``hetfl flower``.
"""

from __future__ import annotations

from importlib.util import find_spec

from hetfl.errors import ConfigurationError


def require_flower() -> None:
    """Check that Flower is installed.

    Raises:
        ConfigurationError: Flower is not installed.
    """
    if find_spec("flwr") is None:
        raise ConfigurationError(
            "Expected Flower for hetfl flower but it is not installed: pip install 'hetfl[flower]'"
        )
