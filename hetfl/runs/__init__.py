"""The run folder, the table of rounds, the headline score, checkpoints, and the interruption of a run."""

from hetfl.runs.run_folder import RunFolder

__all__ = ["RunFolder"]
