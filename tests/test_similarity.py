"""Centred kernel alignment against NumPy, activations against the net's layers, and agreement of heads by a count."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hetfl import ConfigurationError
from hetfl.analysis import (
    activations,
    head_agreement,
    level_similarity,
    linear_cka,
    plot_heads,
    plot_level_similarity,
)
from hetfl.models import MultiExitConvNet
from tests.conftest import small_net

both = pytest.mark.parametrize("unbiased", [True, False])


def features(samples: int, size: int, seed: int) -> Tensor:
    return torch.randn(samples, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_oracle(x: np.ndarray, y: np.ndarray) -> float:
    """Return tr(K H L H) divided by its norms, with an explicit centring matrix."""
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        return float(np.trace(k @ h @ m @ h))

    k, m = x @ x.T, y @ y.T
    return float(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)))


def unbiased_oracle(x: np.ndarray, y: np.ndarray) -> float:
    """Return the inner product of U-centred matrices over their norms (Székely, Rizzo: Annals of Statistics 2014)."""

    def centred(k: np.ndarray) -> np.ndarray:
        n, out = len(k), np.zeros_like(k)
        k = k - np.diag(np.diag(k))
        for i, j in itertools.permutations(range(n), 2):
            rest = k[i].sum() / (n - 2) + k[:, j].sum() / (n - 2)
            out[i, j] = k[i, j] - rest + k.sum() / ((n - 1) * (n - 2))
        return out

    k, m = centred(x @ x.T), centred(y @ y.T)
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


@settings(max_examples=50)
@given(st.integers(4, 9), st.integers(1, 12), st.integers(1, 12), st.floats(-100, 100), st.integers(0, 99))
def test_cka_equals_the_written_out_formulas(n: int, d: int, e: int, shift: float, seed: int) -> None:
    x, y = features(n, d, seed), features(n, e, seed + 1)
    assert linear_cka(x + shift, y, unbiased=False) == pytest.approx(plain_oracle(x.numpy(), y.numpy()), abs=1e-9)
    assert linear_cka(x + shift, y) == pytest.approx(unbiased_oracle(x.numpy(), y.numpy()), abs=1e-6)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), abs=1e-12)


@both
@given(st.integers(1, 8), st.floats(0.01, 100), st.integers(0, 99))
def test_cka_is_1_for_features_equal_up_to_rotation_scale_and_shift(
    unbiased: bool, d: int, scale: float, seed: int
) -> None:
    x = features(10, d, seed)
    rotation, _ = torch.linalg.qr(features(d, d, seed + 1))
    assert linear_cka(x, x, unbiased) == pytest.approx(1.0, abs=1e-12)
    assert linear_cka(x, scale * (x @ rotation) + 3.0, unbiased) == pytest.approx(1.0, abs=1e-9)
    other = features(10, 3, seed + 2)
    assert linear_cka(x @ rotation, other, unbiased) == pytest.approx(linear_cka(x, other, unbiased), abs=1e-9)


def test_cka_of_single_features_equals_their_squared_correlation() -> None:
    x, y = torch.tensor([1.0, 0.0, -1.0, 0.0]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert linear_cka(x[:, None], y[:, None], unbiased=False) == pytest.approx(0.5)  # 2² / (2 · 4)
    x, y = features(30, 1, 0), features(30, 1, 1)
    assert linear_cka(x, y, unbiased=False) == pytest.approx(np.corrcoef(x[:, 0], y[:, 0])[0, 1] ** 2)


def test_the_unbiased_estimate_is_near_zero_for_many_random_features() -> None:
    x, y = features(40, 2000, 0), features(40, 2000, 1)
    assert linear_cka(x, y, unbiased=False) > 0.9
    assert abs(linear_cka(x, y)) < 0.1


@both
@pytest.mark.parametrize("samples", range(4, 16))
def test_constant_features_have_no_similarity(unbiased: bool, samples: int) -> None:
    # Values that differ from their mean by rounding.
    still = torch.tensor([0.1, 1e8 + 0.1, 0.3], dtype=torch.float64).expand(samples, -1)
    assert np.isnan(linear_cka(still, features(samples, 2, 0), unbiased))


@pytest.mark.parametrize(
    ("rows", "others", "message"),
    [
        (3, 3, "Expected at least 4 samples .* got 3"),
        (5, 6, "Expected activations of the same samples but got 5 and 6"),
    ],
)
def test_too_few_samples_or_different_ones_are_refused(rows: int, others: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        linear_cka(features(rows, 2, 0), features(others, 2, 1))


# Activations.


def test_activations_equal_the_layer_outputs() -> None:
    net, inputs = small_net(norm="none").eval(), torch.randn(5, 1, 8, 8)
    actual = activations(net, inputs, ["blocks.0.conv", "classifier"])
    with torch.no_grad():
        first = cast(Any, net).blocks[0].conv(inputs)
        assert torch.equal(actual["blocks.0.conv"], first.double().flatten(1))  # although the ReLU is in place
        assert torch.equal(actual["classifier"], net(inputs).double())
    assert (first < 0).any()
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("blocks.9", "Expected names of layers among those of ConvNet but got 'blocks.9'"),
        ("unused", "Expected 5 rows, one per sample, from layer 'unused' but got NoneType"),
    ],
)
def test_a_layer_without_usable_activations_is_refused_by_name(layer: str, message: str) -> None:
    net = small_net(norm="none").eval()
    net.add_module("unused", nn.Identity())
    with pytest.raises(ConfigurationError, match=message):
        activations(net, torch.randn(5, 1, 8, 8), [layer])
    assert not any(module._forward_hooks for module in net.modules())


def test_a_layer_with_a_wrong_number_of_rows_is_refused_by_name() -> None:
    net = nn.Sequential(nn.Unflatten(0, (3, 2)), nn.Flatten(0, 1))  # pairs of samples, and then samples again
    with pytest.raises(ConfigurationError, match=r"6 rows, one per sample, from layer '0' but got \(3, 2, 4\)"):
        activations(net, torch.randn(6, 4), ["0"])
    assert activations(net, torch.randn(6, 4), ["1"])["1"].shape == (6, 4)


def test_levels_are_compared_only_at_layers_that_both_have() -> None:
    torch.manual_seed(0)
    build: Callable[[int], nn.Module] = lambda depth: MultiExitConvNet(  # noqa: E731
        hidden=(4, 8, 8), norm="none", depth=depth
    ).eval()
    nets, inputs = {"a": build(3), "b": build(2), "c": build(1)}, torch.randn(8, 1, 8, 8)
    table = level_similarity(nets, inputs)
    pairs = {layer: list(zip(rows["level"], rows["other"], strict=True)) for layer, rows in table.groupby("layer")}
    assert pairs["stages.0.trunk.conv"] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert pairs["stages.1.trunk.conv"] == [("a", "b")]
    assert not any("stages.2" in str(layer) for layer in pairs)
    for layer, level, other, cka in table.to_numpy().tolist():
        one, two = (activations(nets[name], inputs, [layer])[layer] for name in (level, other))
        assert cka == pytest.approx(linear_cka(one, two))
    shallow_first = level_similarity({name: nets[name] for name in "cba"}, inputs)
    expected = {(layer, other, level) for layer, level, other, _ in table.to_numpy().tolist()}
    assert {(layer, level, other) for layer, level, other, _ in shallow_first.to_numpy().tolist()} == expected
    same = level_similarity({"a": nets["a"], "again": nets["a"]}, inputs, ["stages.2.trunk"])
    assert same["cka"].tolist() == [pytest.approx(1.0)]
    with pytest.raises(ConfigurationError, match="Expected names of layers but got 'stages.9', which no net has"):
        level_similarity(nets, inputs, ["stages.9"])


# Heads.


@given(st.integers(1, 4), st.integers(1, 9), st.integers(2, 4), st.integers(0, 99))
def test_agreement_equals_the_share_of_samples_with_equal_predictions(h: int, n: int, k: int, seed: int) -> None:
    logits = torch.randn(h, n, k, generator=torch.Generator().manual_seed(seed))
    actual = head_agreement(logits)
    assert actual.dtype == torch.float64
    for i, j in itertools.product(range(h), repeat=2):
        pairs = zip(logits[i].tolist(), logits[j].tolist(), strict=True)
        same = sum(one.index(max(one)) == other.index(max(other)) for one, other in pairs)
        assert float(actual[i, j]) == pytest.approx(same / n)


def test_incomparable_inputs_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="Expected at least two levels to compare but got a"):
        level_similarity({"a": small_net(norm="none")}, torch.randn(5, 1, 8, 8))
    with pytest.raises(
        ConfigurationError, match=r"Expected logits of shape \(heads, samples, classes\) but got \(4, 3\)"
    ):
        head_agreement(torch.zeros(4, 3))


# Figures.


def test_figures_show_the_values() -> None:
    rows = [("conv", "a", "b", 0.91), ("conv", "a", "c", 0.72), ("head", "a", "b", 0.33), ("head", "a", "c", np.nan)]
    ax = plot_level_similarity(pd.DataFrame(rows, columns=["layer", "level", "other", "cka"])).axes[0]
    assert [text.get_text() for text in ax.texts] == ["0.91", "0.72", "0.33"]  # an empty cell for an unknown value
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a–b", "a–c"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["conv", "head"]
    heads = torch.eye(3)[torch.tensor([[0, 1, 2, 0], [0, 1, 2, 1]])]  # two heads and four samples; one sample differs
    assert [text.get_text() for text in plot_heads(heads).axes[0].texts] == ["100.0", "75.0", "75.0", "100.0"]
