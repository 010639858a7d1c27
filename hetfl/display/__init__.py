"""Output in the terminal: before, during and after a run."""

from hetfl.display.describe import describe
from hetfl.display.progress import RoundProgress
from hetfl.display.summary import RunSummary

__all__ = ["RoundProgress", "RunSummary", "describe"]
