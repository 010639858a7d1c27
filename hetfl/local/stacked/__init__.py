"""An executor that trains several clients of a level in one call of a batched net."""

from hetfl.local.stacked.stacked import Stacked

__all__ = ["Stacked"]
