"""How updates are made small, and how what was left out is sent later."""

from hetfl.compression.base import Compressor
from hetfl.compression.error_feedback import ErrorFeedback, Message
from hetfl.compression.gamma_fedht import GammaFedHT
from hetfl.compression.hard_threshold import HardThreshold
from hetfl.compression.identity import Identity
from hetfl.compression.top_k import TopK

__all__ = [
    "Compressor",
    "ErrorFeedback",
    "GammaFedHT",
    "HardThreshold",
    "Identity",
    "Message",
    "TopK",
]
