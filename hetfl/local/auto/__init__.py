"""The fastest way to train a cohort, found by trying."""

from hetfl.local.auto.auto import Auto

__all__ = ["Auto"]
