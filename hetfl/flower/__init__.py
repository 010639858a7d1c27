"""A federation on real devices: what a round asks of its clients travels as messages of Flower (extra ``flower``).

The server runs the very same :class:`~hetfl.FederatedModule` round; only its clients are elsewhere
(:class:`~hetfl.flower.clients.FlowerClients`). A node runs the very same local training, error feedback and wire
(:class:`~hetfl.flower.node.Node`), and keeps what belongs to its clients on its own disk
(:class:`~hetfl.flower.states.ClientStates`). See ``docs/deployment.md``.

Nothing here is imported unless it is asked for.
"""

from __future__ import annotations

from importlib.util import find_spec

from hetfl.errors import ConfigurationError


def require_flower() -> None:
    """Refuse to go on without Flower.

    Raises:
        ConfigurationError: it is not installed.
    """
    if find_spec("flwr") is None:
        raise ConfigurationError(
            "Expected Flower for hetfl flower but it is not installed: pip install 'hetfl[flower]'"
        )
