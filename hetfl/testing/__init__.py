"""Checks of the contract of each kind of extension, for users' classes and for those of this package."""

from hetfl.testing.aggregators import check_aggregator
from hetfl.testing.compressors import check_compressor
from hetfl.testing.nets import check_net
from hetfl.testing.objectives import check_objective
from hetfl.testing.part_rules import check_part_rule
from hetfl.testing.partitioners import check_partitioner
from hetfl.testing.selections import check_selection
from hetfl.testing.values import check_value

__all__ = [
    "check_aggregator",
    "check_compressor",
    "check_net",
    "check_objective",
    "check_part_rule",
    "check_partitioner",
    "check_selection",
    "check_value",
]
