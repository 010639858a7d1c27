"""What the terminal shows: before a run, while it goes on, when it ends."""

from hetfl.display.describe import describe
from hetfl.display.progress import RoundProgress
from hetfl.display.summary import RunSummary

__all__ = ["RoundProgress", "RunSummary", "describe"]
