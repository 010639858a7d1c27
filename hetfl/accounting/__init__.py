"""The costs of rounds in bytes, FLOPs and simulated seconds: predicted before a round, and counted during it."""

from hetfl.accounting.downloads import Base, Downloads
from hetfl.accounting.forecast import Forecast
from hetfl.accounting.ledger import Costs, Ledger

__all__ = ["Base", "Costs", "Downloads", "Forecast", "Ledger"]
