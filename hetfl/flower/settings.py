"""Settings in which server and nodes must agree; each reads them from its own copy of the configuration."""

from __future__ import annotations

from collections.abc import Mapping

import hetfl
from hetfl.federation import FederatedModule


def shared_settings(module: FederatedModule) -> dict[str, str]:
    """Return by name, as short text, the settings that change a federation's numbers, with the partition of its data.

    Args:
        module: set up with its data, and with a trainer.
    """
    fingerprint = module.run_state.fingerprint(module.data, module.pieces)
    return {"hetfl": hetfl.__version__, **fingerprint}


def disagreement(servers: Mapping[str, str], nodes: Mapping[str, str]) -> str:
    """Return text about the first setting in which a node differs from the server; empty if there is none.

    Args:
        servers: the server's settings by name.
        nodes: the node's settings by name.
    """
    for name in [*nodes, *servers]:
        if servers.get(name) != nodes.get(name):
            return f"Expected the server's {name} ({servers.get(name)}) but got {nodes.get(name)}"
    return ""
