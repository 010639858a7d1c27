"""Batch norm with branches for clean and for perturbed samples, as in Split-Mix (Hong et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class DualNorm2d(nn.Module):
    r"""Two batch norms with running statistics, of which the output is a mixture.

    .. math:: y = (1 - \alpha) \, \mathrm{BN}_{\text{clean}}(x) + \alpha \, \mathrm{BN}_{\text{noisy}}(x)

    At :math:`\alpha` 0 and 1, only one branch is computed. In training, a branch is computed for its own samples
    (:func:`mixed`); at test time, :math:`\alpha` chooses between accuracy and robustness.

    Args:
        num_features: channels C.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.clean, self.noisy = nn.BatchNorm2d(num_features), nn.BatchNorm2d(num_features)
        self.alpha = 0.0

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the normalised activations, shape (N, C, H, W)."""
        if self.alpha in (0.0, 1.0):
            one: Tensor = self.noisy(x_NCHW) if self.alpha else self.clean(x_NCHW)
            return one
        both: Tensor = (1.0 - self.alpha) * self.clean(x_NCHW) + self.alpha * self.noisy(x_NCHW)
        return both


@contextmanager
def mixed(net: nn.Module, alpha: float, tracks: bool = True) -> Iterator[None]:
    """Set the mixture of all dual norms of a net, and restore it afterwards.

    Args:
        net: the net.
        alpha: weight of the noisy branch, in [0, 1].
        tracks: whether running statistics follow the batches in training.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, DualNorm2d)]
    before = [(layer.alpha, layer.clean.momentum, layer.noisy.momentum) for layer in layers]
    for layer in layers:
        layer.alpha = alpha
        if not tracks:
            layer.clean.momentum = layer.noisy.momentum = 0.0
    try:
        yield
    finally:
        for layer, (kept, *momenta) in zip(layers, before, strict=True):
            layer.alpha, (layer.clean.momentum, layer.noisy.momentum) = kept, momenta
