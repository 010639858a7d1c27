"""Hooks, one per file: they change a client's vector, an update on the server, or the server's step."""

from hetfl.hooks.base import DeltaContext, Hook
from hetfl.hooks.chain import Hooks
from hetfl.hooks.clip_delta import ClipDelta
from hetfl.hooks.fed_du import FedDU
from hetfl.hooks.median_bound import MedianBound
from hetfl.hooks.momentum_distillation import MomentumDistillation
from hetfl.hooks.norm_bound import NormBound

__all__ = ["ClipDelta", "DeltaContext", "FedDU", "Hook", "Hooks", "MedianBound", "MomentumDistillation", "NormBound"]
