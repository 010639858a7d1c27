"""Which clients take part in a round: one policy per file."""

from hetfl.selection.base import Everyone, Probe, Selection
from hetfl.selection.uniform import Uniform

__all__ = ["Everyone", "Probe", "Selection", "Uniform"]
