"""Methods, one file per paper."""

from hetfl.methods.depthfl import DepthFL
from hetfl.methods.ditto import Ditto
from hetfl.methods.fedavg import FedAvg
from hetfl.methods.fjord import FjORD
from hetfl.methods.flora import FLoRA
from hetfl.methods.het_lora import HetLoRA
from hetfl.methods.heterofl import HeteroFL
from hetfl.methods.scalefl import ScaleFL
from hetfl.methods.split_mix import SplitMix
from hetfl.methods.split_mix_robust import SplitMixRobust

__all__ = [
    "DepthFL",
    "Ditto",
    "FLoRA",
    "FedAvg",
    "FjORD",
    "HetLoRA",
    "HeteroFL",
    "ScaleFL",
    "SplitMix",
    "SplitMixRobust",
]
