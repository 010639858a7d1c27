"""hetfl: federated learning in which every client trains as much of the model as it can afford.

The names below are imported when they are first used: processes that only watch others need no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hetfl.data import FederatedDataModule
    from hetfl.errors import ConfigurationError
    from hetfl.export import load
    from hetfl.federation import FederatedModule
    from hetfl.methods import DepthFL, FedAvg, HeteroFL
    from hetfl.session.trainer import Trainer
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
    "Trainer",
    "load",
]

_MODULES = {
    "ConfigurationError": "hetfl.errors",
    "DepthFL": "hetfl.methods",
    "FedAvg": "hetfl.methods",
    "FederatedDataModule": "hetfl.data",
    "FederatedModule": "hetfl.federation",
    "HeteroFL": "hetfl.methods",
    "Level": "hetfl.types",
    "Trainer": "hetfl.session.trainer",
    "load": "hetfl.export",
}
"""The module of each public name."""


def __getattr__(name: str) -> Any:
    """Import a name of the interface, or a sub-package."""
    if name in _MODULES:
        globals()[name] = getattr(import_module(_MODULES[name]), name)
        return globals()[name]
    if not name.startswith("_") and find_spec(f"hetfl.{name}") is not None:
        return import_module(f"hetfl.{name}")
    raise AttributeError(f"module 'hetfl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
