"""Nets whose constructor takes a width: building blocks in ``layers``, one architecture per file."""

if __name__ != "hetfl.models":
    raise ImportError(f"Expected this package to be imported as hetfl.models but got {__name__!r}: import hetfl.models")

from hetfl.models.convnet import ConvNet
from hetfl.models.layers import Scaler, make_norm, scaled
from hetfl.models.preact_resnet import PreActResNet
from hetfl.models.static_batch_norm import StaticBatchNorm2d, StaticStatistics

__all__ = ["ConvNet", "PreActResNet", "Scaler", "StaticBatchNorm2d", "StaticStatistics", "make_norm", "scaled"]
