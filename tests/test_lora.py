"""Low-rank adapters of a net: outputs, levels, merged weights, weights of a base, and files of peft."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.factors import allocated, product_norm, refactored
from hetfl.levels.level_set import LevelSet
from hetfl.lora import LoRA, adapted_layers
from hetfl.lora.peft_files import save_adapter
from hetfl.lora.transformers_net import Head, TransformersNet
from hetfl.methods.het_lora import tail_score
from hetfl.models import MLP
from hetfl.part import Part
from hetfl.submodel import put, state_of, take
from hetfl.types import Level
from tests.lora_cases import IMAGES, TEXT, adapted, randomised, ranks

ATTENTION = ["*attention.*", "*feed_forward.*", "classifier"]
NETS: dict[str, tuple[Callable[..., nn.Module], Tensor]] = {
    "images": (adapted(trainable=["classifier.*"]), torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))),
    "text": (adapted(net=TEXT, targets=ATTENTION, trainable=[]), torch.arange(35).view(5, 7) % 20),
}


def test_oracles_of_norms_of_tails_and_of_allocation() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.1, 0.0]])
    b = torch.tensor([[1.0, 0.0, 1.0, 0.1], [0.0, 1.0, 0.0, 0.0]])
    assert product_norm(a, b) == pytest.approx(2.457661, abs=1e-6)
    assert product_norm(a, b) == pytest.approx(float((b @ a).norm()), rel=1e-6)
    layers = {"one.lora_A": a, "one.lora_B": b, "two.lora_A": 2 * a, "two.lora_B": b}
    assert float(tail_score({name: layers[name] for name in ("one.lora_A", "one.lora_B")}, 3)) == pytest.approx(0.01)
    assert float(tail_score(layers, 3)) == pytest.approx(0.01 + 0.02)
    assert float(tail_score(layers, 2)) == pytest.approx(3 * (2.01 * 1.01) ** 0.5)
    assert allocated({"a": [3, 2, 1], "b": [4, 1, 0.5]}, {"a": 1, "b": 2}, 5) == {"a": 3, "b": 1}


@pytest.mark.parametrize("rows", [3, 8, 30])
def test_new_factors_are_the_best_of_every_rank(rows: int) -> None:
    random = torch.Generator().manual_seed(rows)
    a = torch.randn(rows, 9, generator=random, dtype=torch.float64)
    b = torch.randn(7, rows, generator=random, dtype=torch.float64)
    new_a, new_b = refactored(a, b, 5)
    assert torch.allclose(new_a @ new_a.T, torch.eye(5).double(), atol=1e-12)  # where B is 0, B still has a gradient
    assert not new_b[:, rows:].any()
    u, s, vt = torch.linalg.svd(b @ a)
    for rank in range(1, 6):
        best = u[:, :rank] * s[:rank] @ vt[:rank] if rank <= rows else b @ a
        assert torch.allclose(new_b[:, :rank] @ new_a[:rank], best, atol=1e-12)
    assert not torch.allclose(u[:, :2] * s[:2] @ vt.T[:2], new_b[:, :2] @ new_a[:2], atol=1e-3)  # V for its transpose


def test_rows_beyond_the_rank_of_any_product_are_zero() -> None:
    for shape, ranks_ in (((2, 6), 3), ((2, 3), 3)):
        new_a, _ = refactored(torch.ones(shape), torch.ones(3, 2), 5)
        assert new_a.norm(dim=1).tolist() == pytest.approx([1.0] * ranks_ + [0.0] * (5 - ranks_))


@pytest.mark.parametrize("kind", NETS)
def test_a_level_computes_the_global_net_without_its_other_ranks(kind: str) -> None:
    """Float64: the truncated factors, and the merged weights, against the whole net with zeros."""
    factory, inputs = NETS[kind]
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    levels = LevelSet(factory, ranks(4, 2, 1), 0)
    whole = randomised(levels.net).double().eval()
    before = whole(inputs)
    for level in "abc":
        part = levels.build(level).double().eval()
        for name, tensor in state_of(part).items():
            tensor.data.copy_(take(state_of(whole)[name], levels.indices[level][name]))
        cut = levels.draw().double().eval()
        for name, tensor in state_of(cut).items():
            held = torch.zeros_like(tensor)
            put(held, levels.indices[level][name], torch.ones_like(state_of(part)[name]))
            tensor.data.copy_(state_of(whole)[name] * held)
        outputs = part(inputs)
        assert torch.allclose(outputs, cut(inputs), rtol=1e-12, atol=1e-14)
        merged = part.merged()  # type: ignore[operator]
        assert type(merged) is type(factory.keywords["net"]())  # type: ignore[attr-defined]
        assert merged.state_dict().keys() == factory.keywords["net"]().state_dict().keys()  # type: ignore[attr-defined]
        assert torch.allclose(merged(inputs), outputs, rtol=1e-9, atol=1e-12)
        assert (level == "a") == torch.allclose(outputs, before, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", NETS)
def test_a_new_net_has_the_outputs_of_its_base_and_trains_adapters_alone(kind: str) -> None:
    factory, inputs = NETS[kind]
    net: Any = factory()
    base = factory.keywords["net"]()  # type: ignore[attr-defined]
    base.load_state_dict({name: net.net.state_dict()[name] for name in base.state_dict()})
    assert torch.equal(net(inputs), base(inputs))
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    whole = (
        {f"net.{name}" for name in base.state_dict() if name.startswith("classifier")} if kind == "images" else set()
    )
    assert trained - whole == {name for name in trained if "lora_" in name}
    assert whole < trained
    assert len(adapted_layers(net)) == (2 if kind == "images" else 9)


def test_widths_and_ranks_nest_together() -> None:
    for factory, inputs in NETS.values():
        levels = LevelSet(factory, {"a": Level(rank=4), "b": Level(width=0.5, rank=2)}, 0)
        outputs = (5, 10) if inputs.is_floating_point() else (5, 7, 20)
        levels.inspect(inputs, outputs, partial(_block, levels))


def _block(levels: LevelSet, level: str, round: int) -> Part:
    return levels.indices[level]


def test_scales_and_nesting() -> None:
    factors = [adapted(scale=scale)(rank=2).scale for scale in ("global", "local", "rslora")]
    assert factors == [2.0, 4.0, 4.0]
    levels = LevelSet(adapted(scale="local"), ranks(4, 2), 0)
    with pytest.raises(ConfigurationError, match="Expected the net at level b to be the leading channels"):
        levels.inspect(torch.rand(5, 1, 8, 8), (5, 10), lambda level, round: levels.indices[level])


def test_weights_are_read_strictly_and_cut_to_the_width(tmp_path: Path) -> None:
    base, path = randomised(IMAGES()), tmp_path / "base.safetensors"
    safetensors.torch.save_file(base.state_dict(), path)
    nets: list[Any] = [adapted(weights=str(path))(width=width) for width in (1.0, 0.5)]
    loaded, narrow = (each.net for each in nets)
    for name, tensor in base.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert torch.equal(narrow.state_dict()[name], tensor[tuple(map(slice, narrow.state_dict()[name].shape))])
    deep = randomised(TEXT())
    safetensors.torch.save_file(deep.state_dict(), tmp_path / "deep.safetensors")
    shallow: Any = adapted(net=TEXT, targets=ATTENTION, trainable=[], weights=str(tmp_path / "deep.safetensors"))(
        depth=1
    )
    held = {name: tensor for name, tensor in shallow.net.state_dict().items() if "lora_" not in name}
    assert held.keys() < deep.state_dict().keys()
    assert all(torch.equal(deep.state_dict()[name], tensor) for name, tensor in held.items())
    one = adapted(net=partial(TEXT, layers=1), targets=ATTENTION, weights=str(tmp_path / "deep.safetensors"))
    with pytest.raises(ConfigurationError, match=r"got 'blocks.1.* in the file, not in the net"):
        one()
    tensors = dict(base.state_dict())
    tensors["more"] = tensors.pop("classifier.bias")
    safetensors.torch.save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ConfigurationError, match="got 'classifier.bias' in the net, not in the file"):
        adapted(weights=str(tmp_path / "other.safetensors"))()
    with pytest.raises(ConfigurationError, match=r"got .*none.safetensors: No such file"):
        adapted(weights=str(tmp_path / "none.safetensors"))()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"targets": ["*attention*"]},
            r"targets that match layers of the net, such as blocks.0.conv, .* '\*attention\*'",
        ),
        ({"trainable": ["head.*"]}, r"trainable to match parameters among .* but got 'head.\*'"),
        ({"rank": 5}, "a rank from 1 to max_rank, 4, but got 5"),
        ({"rank": 0}, "a rank from 1 to max_rank, 4, but got 0"),
        ({"alpha": 0.0}, "alpha above 0 but got 0.0"),
        ({"scale": "half"}, "Expected scale .* 'half'"),
        ({"freeze": "B"}, "freeze A or null but got 'B'"),
        ({"weights": __file__}, "a safetensors file of weights in .* but got"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        adapted(**changes)()


def test_a_net_without_ranks_is_refused_for_levels_of_ranks() -> None:
    with pytest.raises(ConfigurationError, match=r"constructor takes 'rank', which levels of different rank need"):
        LevelSet(IMAGES, ranks(4, 2), 0)
    with pytest.raises(ConfigurationError, match="rank of at least 1 for level b but got 0"):
        LevelSet(adapted(), ranks(4, 0), 0)


def test_layers_that_others_read_are_not_adapted() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

    with pytest.raises(ConfigurationError, match="such as none, but got 'attention"):
        LoRA(lambda width=1.0: Read(), ["attention.out_proj"])


@pytest.mark.parametrize("of", [nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_computed_weights_are_not_adapted(of: Callable[[nn.Module], nn.Module]) -> None:
    def net(width: float = 1.0) -> nn.Module:
        return nn.Sequential(of(nn.Linear(3, 3)), nn.Linear(3, 2))

    assert [*adapted_layers(LoRA(net, ["*"]))] == ["net.1"]
    with pytest.raises(ConfigurationError, match="such as 1, but got '0'"):
        LoRA(net, ["0"])


def test_weights_that_other_layers_have_are_not_adapted() -> None:
    class Tied(nn.Module):
        def __init__(self, width: float = 1.0) -> None:
            super().__init__()
            self.embedding, self.body, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)
            self.head.weight, self.again = self.embedding.weight, self.body

    with pytest.raises(ConfigurationError, match="but got 'head', whose weight is also 'embedding.weight'"):
        LoRA(Tied, ["*"])
    assert [*adapted_layers(LoRA(Tied, ["body"]))] == ["net.body"]  # one layer that is used twice is merged as a whole


FOLDERS: dict[str, tuple[str, Head, dict[str, Any], list[str], list[str]]] = {
    "DistilBert": (
        "DistilBertForSequenceClassification",
        "sequence_classification",
        {"vocab_size": 50, "dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 32, "num_labels": 3},
        ["*q_lin", "*v_lin"],
        ["*classifier.*"],
    ),
    "GPT2": (
        "GPT2LMHeadModel",
        "causal_lm",
        {"vocab_size": 50, "n_embd": 16, "n_head": 2, "n_layer": 2},
        ["*c_attn"],
        [],
    ),
    "ViT": (
        "ViTForImageClassification",
        "image_classification",
        {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32, "image_size": 8}
        | {"patch_size": 4, "num_channels": 1, "num_labels": 3},
        ["*query", "*value"],
        ["*classifier.*"],
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_peft_loads_the_adapter_of_any_rank_with_the_same_logits(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    peft = pytest.importorskip("peft", reason="needs peft")
    name, head, settings, targets, whole = FOLDERS[kind]
    model = getattr(transformers, name)
    model(model.config_class(**settings)).save_pretrained(tmp_path / "base")
    net: Any = LoRA(partial(TransformersNet, str(tmp_path / "base"), head), targets, 4, trainable=whole, rank=3)
    net = randomised(net).eval()
    inputs = torch.rand(4, 1, 8, 8) if kind == "ViT" else torch.randint(50, (4, 7))
    save_adapter(net, tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(model.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    given = {"pixel_values" if kind == "ViT" else "input_ids": inputs}
    assert torch.equal(loaded(**given).logits, net(inputs))
    merged = loaded.merge_and_unload()(**given).logits
    assert torch.allclose(merged, net.merged()(inputs), atol=1e-6)
    assert torch.allclose(merged, loaded(**given).logits, atol=1e-5)


def test_peft_loads_adapters_of_own_nets(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    for base, targets, inputs in (
        (IMAGES, ["*conv"], torch.rand(4, 1, 8, 8)),
        (partial(MLP, norm="none"), ["layers.*"], torch.rand(4, 64)),
    ):
        net: Any = randomised(LoRA(base, targets, 4, trainable=["classifier.*"], rank=2)).eval()
        save_adapter(net, tmp_path / "adapter")
        plain = base()
        plain.load_state_dict({name: net.net.state_dict()[name] for name in plain.state_dict()})
        loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
        assert torch.allclose(loaded(inputs), net(inputs), atol=1e-6)
    with pytest.raises(ConfigurationError, match=r"got one of 'blocks.0.attention.qkv', a projection"):
        save_adapter(LoRA(TEXT, ["*attention.*"], 4), tmp_path / "text")


def test_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs transformers")
    with pytest.raises(ConfigurationError, match="a folder with the config.json of a model of transformers but got"):
        TransformersNet(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "distilbert"}')
    with pytest.raises(ConfigurationError, match="Expected a model for causal_lm in .* but got: "):
        TransformersNet(str(tmp_path), "causal_lm")
