"""Snapshots that a run keeps in its folder; :mod:`hetfl.analysis` reads them."""

from hetfl.snapshots.callback import Snapshots

__all__ = ["Snapshots"]
