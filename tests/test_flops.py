"""FLOPs of multi-exit nets and of grouped convolutions, by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hetfl.local.flops import flops_per_sample
from hetfl.models import MultiExitConvNet


def test_flops_of_multi_exit_nets_by_hand() -> None:
    net = MultiExitConvNet(in_channels=1, num_classes=10, hidden=(4, 8))
    forward, training = flops_per_sample(net, torch.rand(3, 1, 8, 8))
    first, second = 2 * 64 * 9 * 1 * 4, 2 * 16 * 9 * 4 * 8
    exits = 2 * 16 * 9 * 4 + 2 * 16 * 4 * 8 + 2 * (2 * 8 * 10)
    assert forward == first + second + exits
    # Backward: gradients of weights and of inputs, except for the gradient of the images.
    assert training == 3 * (first + second + exits) - first


class ConvolutionPerChannel(nn.Module):
    """A depthwise convolution as one convolution per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.filters = nn.ModuleList(nn.Conv2d(1, 1, 3, padding=1) for _ in range(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x[:, [c]]) for c, conv in enumerate(self.filters)], dim=1)


def test_flops_of_grouped_convolutions_equal_the_sum_over_groups() -> None:
    x = torch.rand(2, 6, 5, 5)
    stem = nn.Conv2d(6, 6, 1)
    depthwise = flops_per_sample(nn.Sequential(stem, nn.Conv2d(6, 6, 3, padding=1, groups=6)), x)
    assert depthwise == flops_per_sample(nn.Sequential(stem, ConvolutionPerChannel(6)), x)
    transposed = flops_per_sample(nn.ConvTranspose2d(6, 6, 3, stride=2, groups=3), x)
    # 25 pixels, each times 9 weights of 2 outputs; no gradient of the inputs.
    assert transposed == (2 * 25 * 6 * 9 * 2, 2 * 2 * 25 * 6 * 9 * 2)
