"""What server and nodes must agree in, although each reads it from its own copy of the configuration."""

from __future__ import annotations

from collections.abc import Mapping

import hetfl
from hetfl.federation import FederatedModule


def shared_settings(module: FederatedModule) -> dict[str, str]:
    """Return by name, in short text, what the numbers of a federation depend on, the partition of its data included.

    Args:
        module: set up with its data, and with a trainer.
    """
    fingerprint = module.run_state.fingerprint(module.data, module.pieces)
    return {"hetfl": hetfl.__version__, "precision": str(module.trainer.precision), **fingerprint}


def disagreement(servers: Mapping[str, str], own: Mapping[str, str]) -> str:
    """Return the first setting in which a node is not like the server, in words; empty if there is none."""
    for name in [*own, *servers]:
        if servers.get(name) != own.get(name):
            return f"Expected the server's {name} ({servers.get(name)}) but got {own.get(name)}"
    return ""
