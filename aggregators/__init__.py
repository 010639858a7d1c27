"""Aggregators, which combine updates of sub-models of different sizes; one rule per file."""

if __name__ != "hetfl.aggregators":
    raise ImportError(
        f"Expected this package to be imported as hetfl.aggregators but got {__name__!r}: import hetfl.aggregators"
    )

from hetfl.aggregators.base import Aggregator
from hetfl.aggregators.clipped_mean import ClippedMean
from hetfl.aggregators.coordinate_median import CoordinateMedian
from hetfl.aggregators.fed_nova import FedNova
from hetfl.aggregators.fl_trust import FLTrust
from hetfl.aggregators.holder_mean import HolderMean
from hetfl.aggregators.multi_krum import MultiKrum
from hetfl.aggregators.product_mean import ProductMean
from hetfl.aggregators.q_fedavg import QFedAvg
from hetfl.aggregators.sample_mean import SampleMean
from hetfl.aggregators.selection_mean import SelectionMean
from hetfl.aggregators.stacked_products import StackedProducts
from hetfl.aggregators.trimmed_mean import TrimmedMean
from hetfl.aggregators.value_filter import ValueFilter
from hetfl.aggregators.value_mean import ValueMean
from hetfl.aggregators.zero_pad_mean import ZeroPadMean

__all__ = [
    "Aggregator",
    "ClippedMean",
    "CoordinateMedian",
    "FLTrust",
    "FedNova",
    "HolderMean",
    "MultiKrum",
    "ProductMean",
    "QFedAvg",
    "SampleMean",
    "SelectionMean",
    "StackedProducts",
    "TrimmedMean",
    "ValueFilter",
    "ValueMean",
    "ZeroPadMean",
]
