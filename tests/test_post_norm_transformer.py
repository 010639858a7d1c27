"""HeteroFL's Transformer: sizes, slices and rounds against plain torch, nesting, executors, resuming, export."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.optim import SGD

import hetfl
from hetfl import HeteroFL, Level
from hetfl.data import TensorData
from hetfl.errors import ConfigurationError
from hetfl.export import export_submodel
from hetfl.fleet import Fixed
from hetfl.levels.level_set import LevelSet
from hetfl.local import LocalTraining, Stacked
from hetfl.local.nesting import check_nesting
from hetfl.models import PostNormTransformer
from hetfl.objectives import LanguageModelling
from hetfl.parts import Prefix
from hetfl.seeding import generator
from hetfl.selection import Uniform
from hetfl.submodel import parameters_of, take
from tests.conftest import small_levels
from tests.flat_transformer import combined, cut, flat, logits_of, slices, trained

Fit = Callable[..., Trainer]

WORDS, HEADS, LENGTH, CLIENTS, LR = 11, 2, 5, 3, 0.1
EMBEDDING = ["embedding.token.weight"]
WIDTHS = {"a": 1.0, "b": 0.5, "c": 0.25}

small = partial(PostNormTransformer, WORDS + 1, WORDS, channels=8, heads=HEADS, feed_forward=12, layers=2, max_length=7)


def by_hand(channels: int, hidden: int, words: int, layers: int = 4, length: int = 64) -> int:
    """Return the number of parameters of a level: E channels of a token, F between the linear layers, V words."""
    e, f = channels, hidden
    norm, linear = 2 * e, e * e + e
    block = 4 * linear + (e * f + f) + (f * e + e) + 2 * norm
    return (words + 1) * e + length * e + norm + layers * block + linear + norm + (e * words + words)


@pytest.mark.parametrize("width", [1.0, 0.5, 0.25, 0.125, 0.0625])
def test_parameters_of_every_level_equal_a_count_by_hand(width: float) -> None:
    """For the 33 278 words of WikiText-2: 19.3, 9.1, 4.4, 2.2 and 1.1 million."""
    with torch.device("meta"):
        net = PostNormTransformer(33_279, 33_278, width=width)
    count = sum(p.numel() for p in net.parameters())
    assert count == by_hand(int(256 * width), int(512 * width), 33_278)
    assert round(count / 1e6, 1) == {1.0: 19.3, 0.5: 9.1, 0.25: 4.4, 0.125: 2.2, 0.0625: 1.1}[width]


def test_initial_values_are_those_of_the_authors_code() -> None:
    net = PostNormTransformer(400, 400, channels=64, layers=1)
    deviation = {name: p.std().item() for name, p in net.named_parameters()}
    for name in ("embedding.token.weight", "embedding.position"):
        assert deviation[name] == pytest.approx(1.0, rel=0.05)
    for name in ("blocks.0.feed_forward.0.weight", "blocks.0.feed_forward.4.weight"):
        assert deviation[name] == pytest.approx(0.02, rel=0.05)
    for name in ("blocks.0.attention.qkv_weight", "blocks.0.attention.out_weight", "decoder.0.weight"):
        assert deviation[name] == pytest.approx((1 / 64 / 3) ** 0.5, rel=0.05)  # uniform up to 1 / sqrt(64)
    assert all(not p.any() for name, p in net.named_parameters() if name.endswith("bias"))


def test_dropout_follows_the_embedding_and_both_sums_and_lies_between_the_linear_layers() -> None:
    net = small(dropout=0.3)
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Dropout) and module.p == 0.3]
    blocks = [f"blocks.{n}.{name}" for n in range(2) for name in ("feed_forward.3", "dropout")]
    assert names == ["dropout", *blocks]
    ids = torch.arange(5).view(1, 5)
    assert torch.equal(net.eval()(ids), net(ids))
    assert not torch.equal(net.train()(ids), net(ids))


def randomised(net: nn.Module) -> nn.Module:
    """Change biases and norm weights from 0 and 1."""
    random = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=random, dtype=parameter.dtype)
    return net


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("width", WIDTHS.values())
def test_a_sub_model_equals_the_flat_net_on_its_slices(width: float, training: bool) -> None:
    """The slices of every tensor, per head for query, key and value, and the Scalers of training."""
    levels = LevelSet(partial(small, dropout=0.0), {"a": Level("a"), "b": Level("b", width)}, seed=0)
    rule = Prefix()
    rule.meet(levels, seed=3)
    whole, net = parameters_of(randomised(levels.net)), levels.build("b")
    part = rule.part("b", 0, 0)
    for name, parameter in parameters_of(net).items():
        parameter.data.copy_(take(whole[name], part[name]))
    ids = torch.randint(WORDS + 1, (4, LENGTH))
    weights = flat(whole)
    tensors = {name: cut(weights[name], dims) for name, dims in slices(weights, width, HEADS).items()}
    expected = logits_of(tensors, ids, HEADS, width if training else 1.0)
    assert torch.allclose(net.train(training)(ids), expected, rtol=1e-10)


def texts() -> list[Tensor]:
    """Return the samples of each client; client 0 lacks words 8 to 10, client 2 words 0 to 3, nobody has word 7."""
    random = torch.Generator().manual_seed(0)
    words = [torch.tensor([0, 1, 2, 3, 4, 5, 6]), torch.tensor([0, 2, 4, 6, 8, 10]), torch.tensor([4, 5, 6, 8, 9, 10])]
    return [each[torch.randint(len(each), (8, LENGTH), generator=random)] for each in words]


def data() -> TensorData:
    samples = texts()
    owner = torch.arange(CLIENTS).repeat_interleave(8)
    inputs = torch.cat(samples)
    return TensorData(
        train_inputs=inputs,
        train_targets=inputs,
        test_inputs=inputs,
        test_targets=inputs,
        num_classes=WORDS,
        train_clients=owner,
        test_clients=owner,
        objective=LanguageModelling(masked=0.3, mask_token=WORDS, only_masked=False),
        val_fraction=0.0,
    )


def federation(**changes: Any) -> HeteroFL:
    """Return HeteroFL with a client of each of three widths, two batches a client and round."""
    sgd = partial(SGD, lr=LR, momentum=0.9, weight_decay=0.01)
    settings: dict[str, Any] = {
        "net": partial(small, dropout=0.0),
        "levels": small_levels(*WIDTHS.values()),
        "assignment": Fixed(),
        "selection": Uniform(CLIENTS),
        "local": LocalTraining(batch_size=4, gradient_clip=1.0, optimizer=sgd),
        "label_rows": EMBEDDING,
        "check_nesting": False,
    }
    return HeteroFL(**{**settings, **changes})


def masked_batches(client: int, round: int) -> list[tuple[Tensor, Tensor]]:
    """Return the masked tokens and the targets of every step of a client."""
    random, samples = generator(0, "local", round, client), texts()[client]
    batches = []
    for batch in torch.randperm(8, generator=random).split(4):
        hidden = torch.rand((4, LENGTH), generator=random, dtype=torch.float32) < 0.3
        batches.append((samples[batch].masked_fill(hidden, WORDS), samples[batch]))
    return batches


@pytest.mark.usefixtures("double_precision")
def test_two_rounds_equal_plain_torch_with_rows_by_the_clients_words(fit: Fit) -> None:
    """The row of the masked token, and those of a word that nobody has, keep their initial values."""
    module = federation()
    first = weights = flat(dict(randomised(module.net).named_parameters()))
    owned = [torch.zeros(WORDS, dtype=torch.bool).index_fill_(0, each.unique(), True) for each in texts()]
    for round in range(2):
        clients = []
        for client, rate in enumerate(WIDTHS.values()):
            positions = slices(weights, rate, HEADS)
            start = {name: cut(value, positions[name]) for name, value in weights.items()}
            after = trained(start, masked_batches(client, round), owned[client], HEADS, rate, LR)
            clients.append((after, positions, owned[client]))
        weights = combined(weights, clients)
    fit(module, data(), rounds=2, precision="64-true", limit_val_batches=0)
    actual = flat(dict(module.net.named_parameters()))
    assert actual.keys() == weights.keys()
    for name, expected in weights.items():
        assert torch.allclose(actual[name], expected, rtol=0, atol=1e-11), name
        assert not torch.equal(expected, first[name])
    assert torch.equal(actual["embedding"][[7, WORDS]], first["embedding"][[7, WORDS]])
    assert torch.equal(actual["classifier.weight"][7], first["classifier.weight"][7])


def table(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(str(trainer.log_dir)) / "metrics.csv")


@pytest.mark.parametrize("per_level", [None, EMBEDDING])
def test_fewer_rows_make_smaller_uploads(fit: Fit, per_level: Any) -> None:
    """Of 12 rows of the embedding the clients send 7, 6 and 6, of 8, 4 and 2 channels of 4 bytes."""
    without, with_rows = (
        table(fit(federation(label_rows=rows, per_level=per_level), data(), 1, f"{bool(rows)}", limit_val_batches=0))
        for rows in ([], EMBEDDING)
    )
    saved = without["comm/up_bytes"].iloc[0] - with_rows["comm/up_bytes"].iloc[0]
    assert saved == 4 * (5 * 8 + 6 * 4 + 6 * 2)


def test_a_run_with_dropout_resumes_with_the_same_bits_and_exports(fit: Fit, tmp_path: Path) -> None:
    make = partial(federation, net=small)
    whole, begun, resumed = make(), make(), make()
    settings: dict[str, Any] = {"num_sanity_val_steps": 0, "limit_val_batches": 0}
    expected = table(fit(whole, data(), 4, "whole", **settings))
    fit(begun, data(), 2, "begun", **settings).save_checkpoint(tmp_path / "half.ckpt")
    actual = table(fit(resumed, data(), 4, "resumed", str(tmp_path / "half.ckpt"), **settings))
    rest = expected[actual.columns].iloc[2:].reset_index(drop=True)
    pd.testing.assert_frame_equal(actual, rest, check_exact=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    export_submodel(whole, "c", tmp_path / "c.safetensors")
    ids = texts()[0]
    assert torch.equal(hetfl.load(tmp_path / "c.safetensors")(ids), whole.submodel("c").eval()(ids))


@pytest.mark.usefixtures("double_precision")
def test_clients_of_a_level_may_be_stacked(fit: Fit) -> None:
    values = []
    for number, executor in enumerate((None, Stacked())):
        module = federation(executor=executor, levels=small_levels(1.0, 0.5), assignment=Fixed(proportions={"b": 1}))
        fit(module, data(), rounds=2, name=f"run{number}", precision="64-true", limit_val_batches=0)
        values.append(torch.cat([p.detach().flatten() for p in module.net.parameters()]))
    assert torch.allclose(values[0], values[1], rtol=0, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
def test_widths_nest_with_the_global_temperature(causal: bool) -> None:
    net = partial(small, temperature="global", causal=causal)
    levels = LevelSet(net, small_levels(1.0, 0.5, 0.25), seed=0)
    for level in "bc":
        check_nesting(levels.net, levels.build(level), levels.indices[level], torch.arange(10).view(2, 5), level)


def test_a_causal_net_does_not_see_later_tokens() -> None:
    net, ids = small(causal=True).eval(), torch.arange(10).view(2, 5)
    changed = ids.index_fill(1, torch.tensor([3, 4]), 7)
    assert torch.equal(net(ids)[:, :3], net(changed)[:, :3])
    assert not torch.allclose(net(ids)[:, 3], net(changed)[:, 3])


def test_the_local_temperature_is_refused_unless_the_check_is_off(fit: Fit) -> None:
    with pytest.raises(ConfigurationError, match="at level b to be the leading channels .* set check_nesting to false"):
        fit(federation(check_nesting=True), data(), rounds=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PostNormTransformer(12, temperature="low"), r"temperature in .* but got 'low'"),  # type: ignore[arg-type]
        (lambda: small(heads=3), "heads that divide 8 channels but got 3"),
        (lambda: federation(label_rules=False), r"label_rules true with label_rows \['embedding.token.weight'\] but"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"Expected {message}"):
        make()


@pytest.mark.parametrize(
    ("pattern", "message"), [("embeding*", "no tensor for 'embeding"), ("*position", r"of \[7\] rows for '\*position")]
)
def test_label_rows_that_match_no_tensor_with_a_row_per_label_are_refused(pattern: str, message: str, fit: Fit) -> None:
    with pytest.raises(ConfigurationError, match=f"at least 11 rows, one per label, but got .*{message}"):
        fit(federation(label_rows=[pattern]), data(), rounds=1)
