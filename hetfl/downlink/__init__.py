"""What clients are sent of the models, where it travels as codes."""

from hetfl.downlink.broadcast import Broadcast, receiving
from hetfl.downlink.downlink import Downlink

__all__ = ["Broadcast", "Downlink", "receiving"]
