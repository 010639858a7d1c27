"""The server's side of a round: the module and what it is made of, a step of the round per file."""

from hetfl.federation.callback import FederatedCallback
from hetfl.federation.module import FederatedModule

__all__ = ["FederatedCallback", "FederatedModule"]
