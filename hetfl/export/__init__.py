"""Sub-models as files: exported with a card that says what they are, and loaded without the federation."""

from hetfl.export.card import Card
from hetfl.export.loading import FORMATS, load
from hetfl.export.writing import check_export, export_submodel

__all__ = ["FORMATS", "Card", "check_export", "export_submodel", "load"]
