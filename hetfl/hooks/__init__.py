"""Hooks, one per file: they change what a client sends, what the server adds up, or the step that the server takes."""

from hetfl.hooks.base import DeltaContext, Hook
from hetfl.hooks.chain import Hooks
from hetfl.hooks.clip_delta import ClipDelta
from hetfl.hooks.norm_bound import NormBound

__all__ = ["ClipDelta", "DeltaContext", "Hook", "Hooks", "NormBound"]
