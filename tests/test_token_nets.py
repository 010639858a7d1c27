"""Nets for token ids: their values against torch's layers and NumPy, padding, and refused inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl import Level
from hetfl.errors import ConfigurationError
from hetfl.levels.level_set import LevelSet
from hetfl.local.flops import flops_per_sample
from hetfl.local.nesting import check_nesting
from hetfl.models import LSTM, Scaler, Transformer
from hetfl.models.attention import Attention, attended
from hetfl.models.lstm import LSTMLayer
from hetfl.parts import PartRule, Prefix, RandomChannels, Rolling
from hetfl.submodel import parameters_of, take
from tests.conftest import small_levels
from tests.token_cases import (
    CLASSES,
    SMALL,
    VOCABULARY,
    lstm_by_hand,
    tokens,
    transformer_by_hand,
)

pytestmark = pytest.mark.usefixtures("double_precision")


def randomised(net: nn.Module) -> nn.Module:
    """Change biases and norm weights from 0 and 1."""
    random = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=random)
    return net.eval()


def test_an_lstm_layer_equals_torchs() -> None:
    layer, reference = LSTMLayer(5, 6, 1.0), nn.LSTM(5, 6, batch_first=True)
    randomised(layer)
    with torch.no_grad():
        below = {
            "weight_ih_l0": torch.cat([layer.input_weight[:, gate] for gate in range(4)]),
            "weight_hh_l0": torch.cat([layer.hidden_weight[:, gate] for gate in range(4)]),
            "bias_ih_l0": torch.cat(list(layer.biases)),
            "bias_hh_l0": torch.zeros(24),
        }
    reference.load_state_dict(below)
    x = torch.randn(3, 8, 5)
    assert torch.allclose(layer(x), reference(x)[0], rtol=1e-10)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_equals_torchs(causal: bool, padded: bool) -> None:
    attention, x = Attention(12, 3, 1.0), torch.randn(2, 5, 12)
    randomised(attention)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool() if padded else None
    actual = attention(x, attended(mask, causal, 5, x.device))
    stacked = torch.cat([attention.qkv_weight[:, i, h] for i in range(3) for h in range(3)])
    out = torch.cat([attention.out_weight[:, h] for h in range(3)], dim=1)
    x = x.transpose(0, 1)
    expected, _ = F.multi_head_attention_forward(
        *(x, x, x, 12, 3, stacked, None, None, None, False, 0.0, out, attention.out_bias),
        key_padding_mask=None if mask is None else ~mask,
        attn_mask=torch.ones(5, 5).triu(1).bool() if causal else None,
    )
    real = torch.ones(2, 5).bool() if mask is None else mask  # outputs at padding are not used
    assert torch.allclose(actual[real], expected.transpose(0, 1)[real], rtol=1e-10)


BY_HAND = {"lstm": lstm_by_hand, "transformer": transformer_by_hand}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("rule", [Prefix, Rolling, RandomChannels])
@pytest.mark.parametrize("kind", BY_HAND)
def test_a_sub_model_equals_numpy_on_its_channels_of_the_global_weights(
    kind: str, rule: type[PartRule], training: bool
) -> None:
    """Sub-models keep whole gates and heads, connected layers have the same channels, and the Scaler divides by 1/2."""
    depth = {} if kind == "lstm" else {"depth": 2}
    factory: Callable[..., nn.Module] = lambda **sizes: SMALL[kind](num_classes=CLASSES, **sizes)  # noqa: E731
    levels = LevelSet(factory, {"a": Level("a"), "b": Level("b", 0.5, **depth)}, seed=0)
    rule_of_run = rule()
    rule_of_run.meet(levels, seed=3)
    part, whole, net = rule_of_run.part("b", 4, 1), parameters_of(randomised(levels.net)), levels.build("b")
    for name, parameter in parameters_of(net).items():
        parameter.data.copy_(take(whole[name], part[name]))
    ids = tokens(3)
    actual = net.train(training)(ids)
    weights = {name: tensor.detach().numpy() for name, tensor in whole.items()}
    expected = [BY_HAND[kind](weights, each.numpy(), part, 2.0 if training else 1.0) for each in ids]
    assert torch.allclose(actual, torch.from_numpy(np.stack(expected)), rtol=1e-9)


OUTPUTS: dict[str, dict[str, Any]] = {"classes": {"num_classes": CLASSES}, "tokens": {"pooling": "none"}}


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("kind", SMALL)
def test_the_nets_nest_in_width_and_depth(kind: str, outputs: str) -> None:
    sizes = {"a": Level("a"), "b": Level("b", 0.7), "c": Level("c", 0.25)}
    if kind != "lstm":
        sizes |= {"d": Level("d", depth=1), "e": Level("e", 0.5, 2)}
    levels = LevelSet(partial(SMALL[kind], **OUTPUTS[outputs]), sizes, seed=0)
    for level in levels:
        check_nesting(levels.net, levels.build(level), levels.indices[level], tokens(6), level)


@pytest.mark.parametrize("kind", SMALL)
def test_outputs_have_the_documented_shapes(kind: str) -> None:
    exits = (3,) if kind == "exits" else ()
    assert SMALL[kind](CLASSES)(tokens(5)).shape == (*exits, 5, CLASSES)
    assert SMALL[kind](pooling="none")(tokens(5)).shape == (*exits, 5, 7, VOCABULARY)


@pytest.mark.parametrize("integers", [torch.uint8, torch.int16, torch.int32])
def test_token_ids_of_any_integer_dtype_are_accepted(integers: torch.dtype) -> None:
    net = SMALL["lstm"](CLASSES)
    assert torch.equal(net(tokens(5).to(integers)), net(tokens(5)))


@pytest.mark.parametrize(("kind", "side"), [("lstm", "left"), *((kind, "right") for kind in SMALL)])
def test_padding_does_not_change_outputs(kind: str, side: str) -> None:
    """A Transformer counts positions from the left, including padding."""
    net = randomised(SMALL[kind](CLASSES, padding=0))
    ids = tokens(4) % (VOCABULARY - 1) + 1
    padding = [torch.zeros(4, 3).long()]
    padded = torch.cat([*padding, ids] if side == "left" else [ids, *padding], dim=1)
    expected = net(ids)
    assert torch.allclose(net(padded), expected, rtol=1e-10)
    others = {"tokens": torch.where(padded == 0, 7, padded), "mask": (padded != 0).long()}
    assert torch.allclose(net(others), expected, rtol=1e-10)
    assert not torch.allclose(net(others["tokens"]), expected, rtol=1e-3)


@pytest.mark.parametrize("kind", SMALL)
def test_a_sequence_of_padding_only_has_finite_outputs_and_gradients(kind: str) -> None:
    net = SMALL[kind](CLASSES, padding=0)
    net(torch.zeros(2, 5).long()).sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize("kind", SMALL)
def test_a_language_model_ignores_later_tokens(kind: str) -> None:
    net, ids = SMALL[kind](pooling="none"), tokens(4)
    changed = ids.clone()
    changed[:, 5] = (ids[:, 5] + 1) % VOCABULARY
    same = (net(ids) == net(changed)).all(-1).movedim(-1, 0).flatten(1).all(1)
    assert same.tolist() == [True] * 5 + [False] * 2
    if kind != "lstm":
        net = SMALL[kind](pooling="none", causal=False)
        assert not bool((net(ids) == net(changed)).all(-1).any())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SMALL["transformer"](pooling="max"), r"pooling in \('mean', 'none'\) but got 'max'"),
        (lambda: SMALL["exits"](pooling="max"), "pooling in"),
        (lambda: SMALL["lstm"](pooling="max"), "pooling in"),
        (lambda: LSTM(5, layers=0), "at least 1 layer but got 0"),
        (lambda: Transformer(5, channels=10, heads=4), "heads that divide 10 channels but got 4"),
        (lambda: SMALL["transformer"](depth=4), "depth in 1..3"),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (tokens(4, 65), "at most max_length 64 tokens but got 65"),
        (torch.rand(4, 7), "'indices' to have one of the following scalar types: Long, Int"),
        (tokens(4) + VOCABULARY, "index out of range"),
    ],
)
def test_inputs_that_are_not_token_ids_are_refused_at_the_start(inputs: Tensor, message: str) -> None:
    levels = LevelSet(lambda **sizes: SMALL["transformer"](CLASSES, **sizes), small_levels(1.0, 0.5), seed=0)
    with pytest.raises(ConfigurationError, match=message) as error:
        levels.inspect(inputs, (4, CLASSES))
    assert "\n" not in str(error.value)


def test_dropout_is_off_by_default() -> None:
    for factory in SMALL.values():
        net, noisy = factory(CLASSES).train(), factory(CLASSES, dropout=0.5).train()
        assert torch.equal(net(tokens(3)), net(tokens(3)))
        assert not torch.equal(noisy(tokens(3)), noisy(tokens(3)))


def test_flops_by_hand() -> None:
    ids, length = tokens(3), 7
    lstm, _ = flops_per_sample(SMALL["lstm"](CLASSES), ids)
    gates = sum(4 * 10 * (incoming + 10) for incoming in (6, 10))
    assert lstm == 2 * (length * gates + 10 * CLASSES)
    transformer, training = flops_per_sample(SMALL["transformer"](CLASSES), ids)
    block = 4 * 12 * 12 + 2 * 12 * 20 + 2 * length * 12
    assert transformer == 2 * (length * 3 * block + 12 * CLASSES)
    assert training == 3 * transformer


def test_a_scaler_follows_every_linear_map_except_the_classifier() -> None:
    """The Scalers are at HeteroFL's places; their widths are those of the level."""
    net = SMALL["transformer"](CLASSES, width=0.5)
    assert [name for name, layer in net.named_modules() if isinstance(layer, Scaler) and layer.width == 0.5] == [
        "embedding.scaler",
        *(f"blocks.{i}.{leaf}" for i in range(3) for leaf in ("attention.scaler", "feed_forward.1", "feed_forward.4")),
    ]
