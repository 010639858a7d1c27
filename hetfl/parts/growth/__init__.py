"""Growth: which entries a dynamic mask drops, and which it grows, one way per file."""

from hetfl.parts.growth.base import Exchange, Growth
from hetfl.parts.growth.by_clients import ByClients
from hetfl.parts.growth.by_server import ByServer
from hetfl.parts.growth.own_masks import OwnMasks
from hetfl.parts.growth.posterior import Posterior
from hetfl.parts.growth.random_growth import RandomGrowth

__all__ = ["ByClients", "ByServer", "Exchange", "Growth", "OwnMasks", "Posterior", "RandomGrowth"]
