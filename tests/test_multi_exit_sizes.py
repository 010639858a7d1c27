"""Numbers of parameters of multi-exit nets: the authors', the documented ones, and those of a separate formula."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hetfl.models import MultiExitConvNet, MultiExitResNet

RESNET = (479_652, 1_347_336, 3_838_316, 12_283_344)
CONVNET = {
    1: (40_266, 187_220, 622_430, 1_808_744),
    1 / 2: (11_946, 50_612, 161_726, 459_976),
    1 / 4: (3_930, 14_564, 43_502, 118_904),
    1 / 8: (1_458, 4_604, 12_422, 31_696),
    1 / 16: (606, 1_640, 3_890, 8_924),
}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def separable(incoming: int, outgoing: int) -> int:
    # A 3x3 filter per channel, the 1x1 convolution, and a norm's weight and bias.
    return 9 * incoming + incoming * outgoing + 2 * outgoing


def bottleneck(incoming: int, outgoing: int) -> int:
    return separable(incoming, incoming) + separable(incoming, outgoing)


def resnet_size(sizes: Sequence[int], depth: int, images: int, classes: int) -> int:
    total = 9 * images * sizes[0] + 2 * sizes[0]
    for stage in range(depth):
        before, size, after = sizes[max(stage - 1, 0)], sizes[stage], sizes[stage + 1 :]
        total += 9 * before * size + 3 * 9 * size**2 + 4 * 2 * size
        total += before * size + 2 * size if stage or before != size else 0
        if after:
            total += bottleneck(size, size) + 2 * size
        total += sum(bottleneck(*pair) for pair in itertools.pairwise((size, *after)))
        total += classes * (sizes[-1] + 1)
    return total


def convnet_size(sizes: Sequence[int], depth: int, images: int, classes: int) -> int:
    trunk = sum(9 * a * b + 3 * b for a, b in itertools.pairwise((images, *sizes[:depth])))
    exits = sum(separable(size, sizes[-1]) for size in sizes[: min(depth, len(sizes) - 1)])
    return trunk + exits + depth * classes * (sizes[-1] + 1)


@pytest.mark.parametrize(("depth", "expected"), list(enumerate(RESNET, start=1)))
def test_the_resnet_has_the_sizes_of_the_authors_code(depth: int, expected: int) -> None:
    with torch.device("meta"):
        assert count(MultiExitResNet(depth=depth)) == expected
    assert resnet_size((64, 128, 256, 512), depth, 3, 100) == expected


@pytest.mark.parametrize("width", CONVNET)
def test_the_convnet_has_the_sizes_of_its_documentation(width: float) -> None:
    with torch.device("meta"):
        sizes = tuple(count(MultiExitConvNet(width=width, depth=depth)) for depth in (1, 2, 3, 4))
    assert sizes == CONVNET[width]
    assert all(f"{size:,}".replace(",", " ") in (MultiExitConvNet.__doc__ or "") for size in sizes)


@settings(max_examples=25)
@given(
    hidden=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    width=st.sampled_from([1.0, 0.5, 0.3]),
    images=st.sampled_from([1, 3]),
    data=st.data(),
)
def test_sizes_follow_from_the_description(hidden: list[int], width: float, images: int, data: st.DataObject) -> None:
    depth = data.draw(st.integers(1, len(hidden)))
    sizes = [math.ceil(round(width * size, 6)) for size in hidden]
    arguments: dict[str, Any] = {"hidden": hidden, "width": width, "depth": depth, "in_channels": images}
    with torch.device("meta"):
        assert count(MultiExitResNet(num_classes=10, **arguments)) == resnet_size(sizes, depth, images, 10)
        assert count(MultiExitConvNet(num_classes=10, **arguments)) == convnet_size(sizes, depth, images, 10)
