"""How updates are made small, and how what was left out is sent later."""

from hetfl.compression.adaptive_density import AdaptiveDensity
from hetfl.compression.base import Compressor, Context
from hetfl.compression.chain import Chain
from hetfl.compression.channel_threshold import ChannelThreshold
from hetfl.compression.dynamic_range import DynamicRange
from hetfl.compression.error_feedback import ErrorFeedback
from hetfl.compression.fixed_point import FixedPoint
from hetfl.compression.gamma_fedht import GammaFedHT
from hetfl.compression.hard_threshold import HardThreshold
from hetfl.compression.identity import Identity
from hetfl.compression.log_quantizer import LogQuantizer
from hetfl.compression.low_rank import LowRank
from hetfl.compression.message import Message
from hetfl.compression.quantiser import Quantiser
from hetfl.compression.random_k import RandomK
from hetfl.compression.sign_ef import SignEF
from hetfl.compression.staleness import Decay, DropAfter, Keep, Staleness
from hetfl.compression.stochastic_quantizer import StochasticQuantizer
from hetfl.compression.top_k import TopK

__all__ = [
    "AdaptiveDensity",
    "Chain",
    "ChannelThreshold",
    "Compressor",
    "Context",
    "Decay",
    "DropAfter",
    "DynamicRange",
    "ErrorFeedback",
    "FixedPoint",
    "GammaFedHT",
    "HardThreshold",
    "Identity",
    "Keep",
    "LogQuantizer",
    "LowRank",
    "Message",
    "Quantiser",
    "RandomK",
    "SignEF",
    "Staleness",
    "StochasticQuantizer",
    "TopK",
]
