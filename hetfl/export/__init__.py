"""Export of sub-models to files with a card that describes them, and loading without the federation."""

from hetfl.export.adapter import export_adapter, known_cluster
from hetfl.export.card import Card
from hetfl.export.loading import FORMATS, load
from hetfl.export.writing import check_export, export_submodel

__all__ = ["FORMATS", "Card", "check_export", "export_adapter", "export_submodel", "known_cluster", "load"]
