"""The server's side of a round: the module and its components, one step of a round per file."""

from hetfl.federation.callback import FederatedCallback
from hetfl.federation.module import FederatedModule

__all__ = ["FederatedCallback", "FederatedModule"]
