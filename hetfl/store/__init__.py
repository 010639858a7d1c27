"""Stores of clients' states between rounds: in memory, or in one file per client and round."""

from hetfl.store.base import ClientStore, MemoryStore
from hetfl.store.disk import DiskStore

__all__ = ["ClientStore", "DiskStore", "MemoryStore"]
