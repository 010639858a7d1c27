"""Static batch norm: batch statistics in training, statistics gathered from the clients in evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class StaticStatistics:
    """Sums that clients report for one norm layer; sums over batches and over clients are added.

    Attributes:
        mean_C: sum over batches of the batch means, shape (C,).
        var_C: sum over batches of the unbiased batch variances, shape (C,).
        batches: number of batches in the sums.
    """

    mean_C: Tensor
    var_C: Tensor
    batches: int

    def __add__(self, other: StaticStatistics) -> StaticStatistics:
        """Return the sums over both."""
        return StaticStatistics(self.mean_C + other.mean_C, self.var_C + other.var_C, self.batches + other.batches)


class StaticBatchNorm2d(nn.Module):
    r"""Batch norm without running statistics (HeteroFL, section 3, "static batch normalization").

    Training normalises by the batch. Evaluation normalises by the statistics that were passed to :meth:`load`: the
    unweighted means over batches of the batch mean and of the unbiased batch variance, gathered from the clients with
    the current model (:func:`gathering`). The statistics are non-persistent buffers, so clients do not send or average
    them.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \cdot w + b

    Args:
        num_features: channels C.
        eps: added to the variance.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("mean", torch.full((num_features,), torch.nan), persistent=False)
        self.register_buffer("var", torch.full((num_features,), torch.nan), persistent=False)
        self.ready = False
        self.sums: StaticStatistics | None = None
        self.is_gathering = False

    def load(self, statistics: StaticStatistics) -> None:
        """Use these sums in evaluation."""
        self.mean.copy_(statistics.mean_C / statistics.batches)
        self.var.copy_(statistics.var_C / statistics.batches)
        self.ready = True

    def forget(self) -> None:
        """Use NaN in evaluation, because the statistics are unknown; the outputs are then NaN."""
        self.mean.fill_(torch.nan)
        self.var.fill_(torch.nan)
        self.ready = True

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the normalised activations, shape (N, C, H, W).

        Raises:
            RuntimeError: in evaluation, before any statistics were loaded.
        """
        if self.is_gathering:
            return self._gather(x_NCHW)
        if self.training:
            return F.batch_norm(x_NCHW, None, None, self.weight, self.bias, training=True, eps=self.eps)
        if not self.ready:
            raise RuntimeError(
                "Expected static batch-norm statistics before evaluation but got none: gather them first"
            )
        return F.batch_norm(x_NCHW, self.mean, self.var, self.weight, self.bias, training=False, eps=self.eps)

    def _gather(self, x_NCHW: Tensor) -> Tensor:
        """Return the activations normalised by the batch, and add its statistics to the sums."""
        mean_C, var_C = self.weight.new_zeros(2, self.weight.numel())
        # Running statistics with a momentum of 1 are those of the batch, which the same pass has computed.
        normalised_NCHW = F.batch_norm(
            x_NCHW, mean_C, var_C, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps
        )
        batch = StaticStatistics(mean_C, var_C, 1)
        self.sums = batch if self.sums is None else self.sums + batch
        return normalised_NCHW

    def extra_repr(self) -> str:
        """Return the sizes for ``print(net)``."""
        return f"{self.weight.numel()}, eps={self.eps}"


def static_layers(net: nn.Module) -> dict[str, StaticBatchNorm2d]:
    """Return the static batch-norm layers of a net by name."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, StaticBatchNorm2d)}


def load_statistics(net: nn.Module, sums: Mapping[str, StaticStatistics] | None) -> None:
    """Load the sums of all static norm layers by name; None: unknown, and the layers are marked as not ready."""
    for name, layer in static_layers(net).items():
        if sums is None:
            layer.ready = False
        else:
            layer.load(sums[name])


def forget_unknown(net: nn.Module) -> None:
    """Let the static norm layers that are not ready give NaN."""
    for layer in static_layers(net).values():
        if not layer.ready:
            layer.forget()


@contextmanager
def gathering(net: nn.Module) -> Iterator[dict[str, StaticBatchNorm2d]]:
    """Put a net into the mode in which statistics are gathered, and back into evaluation mode afterwards.

    All layers, the Scaler included, act as in evaluation. Only static norm layers normalise by the batch, and add its
    statistics to ``sums``. (In training mode the Scaler would make the activations larger by 1/width than those in
    evaluation, and the accuracy of every level below the largest would fall to chance.)
    """
    layers = static_layers(net)
    net.eval()
    for layer in layers.values():
        layer.is_gathering, layer.sums = True, None
    try:
        yield layers
    finally:
        for layer in layers.values():
            layer.is_gathering, layer.sums = False, None
