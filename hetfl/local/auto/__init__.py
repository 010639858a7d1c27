"""An executor that times several ways to train a cohort and uses the fastest."""

from hetfl.local.auto.auto import Auto

__all__ = ["Auto"]
