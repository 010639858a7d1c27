"""What rounds cost, in bytes, FLOPs and simulated seconds: predicted before they begin, counted as they go."""

from hetfl.accounting.downloads import Downloads
from hetfl.accounting.forecast import Forecast
from hetfl.accounting.ledger import Costs, Ledger

__all__ = ["Costs", "Downloads", "Forecast", "Ledger"]
