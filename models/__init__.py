"""Nets whose constructor takes a width, a depth or both; one architecture per file.

``layers`` has the blocks that all nets share, ``exits`` those of nets with an exit per stage, and ``tokens`` and
``attention`` those of nets for token ids.
"""

if __name__ != "hetfl.models":
    raise ImportError(f"Expected this package to be imported as hetfl.models but got {__name__!r}: import hetfl.models")

from hetfl.models.convnet import ConvNet
from hetfl.models.dual_norm import DualNorm2d
from hetfl.models.layers import Scaler, make_norm, scaled
from hetfl.models.lstm import LSTM
from hetfl.models.mlp import MLP
from hetfl.models.multi_exit_convnet import MultiExitConvNet
from hetfl.models.multi_exit_resnet import MultiExitResNet
from hetfl.models.multi_exit_transformer import MultiExitTransformer
from hetfl.models.post_norm_transformer import PostNormTransformer
from hetfl.models.preact_resnet import PreActResNet
from hetfl.models.split_convnet import SplitConvNet
from hetfl.models.static_batch_norm import StaticBatchNorm2d, StaticStatistics
from hetfl.models.step_resnet import StepResNet
from hetfl.models.transformer import Transformer
from hetfl.models.twin import Twin

__all__ = [
    "LSTM",
    "MLP",
    "ConvNet",
    "DualNorm2d",
    "MultiExitConvNet",
    "MultiExitResNet",
    "MultiExitTransformer",
    "PostNormTransformer",
    "PreActResNet",
    "Scaler",
    "SplitConvNet",
    "StaticBatchNorm2d",
    "StaticStatistics",
    "StepResNet",
    "Transformer",
    "Twin",
    "make_norm",
    "scaled",
]
