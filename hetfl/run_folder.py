"""Keeps the class path ``hetfl.run_folder.RunFolder``, which configurations of the first edition use."""

from hetfl.runs import RunFolder

__all__ = ["RunFolder"]
