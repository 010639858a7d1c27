"""The clients of a level trained in one call of a net for all of them."""

from hetfl.local.stacked.stacked import Stacked

__all__ = ["Stacked"]
