"""What a run leaves behind: its folder, its table of rounds and their headline, checkpoints, and how it is stopped."""

from hetfl.runs.run_folder import RunFolder

__all__ = ["RunFolder"]
