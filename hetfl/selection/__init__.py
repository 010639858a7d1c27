"""Which clients take part in a round: one policy per file."""

from hetfl.selection.base import Selection
from hetfl.selection.uniform import Uniform

__all__ = ["Selection", "Uniform"]
