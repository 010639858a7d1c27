"""Tensors of which each level has its own copy: against NumPy, in every executor, after a resume, refused settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer

from hetfl import FedAvg, HeteroFL, Level
from hetfl.aggregators import FLTrust
from hetfl.analysis import Snapshots, load_snapshots
from hetfl.compression import ErrorFeedback, TopK
from hetfl.errors import ConfigurationError
from hetfl.fleet import Dynamic
from hetfl.levels.level_set import LevelSet
from hetfl.local import Executor, Sequential, Stacked, Workers
from hetfl.parts import RandomMask, Rolling
from hetfl.unlearning.callbacks import Asking
from tests.conftest import small_data, small_levels, small_module, small_net
from tests.reference.given import made_data
from tests.relative_cases import SIZES, block, delta, federation, spread
from tests.sparse_cases import client_arrays, values_of

Fit = Callable[..., Trainer]
NORMS = ["*norm*"]


@pytest.mark.usefixtures("double_precision")
def test_a_run_equals_numpy_and_copies_are_averaged_within_their_level(fit: Fit) -> None:
    """The second layer is per level, the first one is shared; levels are drawn anew in every round."""
    units, rounds = {"a": 4, "b": 2}, 5
    module = federation(FedAvg, levels=small_levels(1.0, 0.5), assignment=Dynamic(), per_level=["second.*"])
    data, present = made_data(SIZES, (6,), 3), values_of(module.net)
    assert set(present) == {"first.weight", *(f"second.{leaf}{of}" for leaf in ("weight", "bias") for of in ("", "@b"))}
    np.testing.assert_array_equal(present["second.weight@b"], present["second.weight"][:, :2])
    fit(module, data, rounds=rounds, precision="64-true")
    for round in range(rounds):
        sums, held = ({name: np.zeros_like(value) for name, value in present.items()} for _ in range(2))
        for client, level in enumerate(module.assignment.levels(round)):
            own = "@b" if level == "b" else ""
            theta = {name: present[name + (own if "second" in name else "")] for name in
                     ("first.weight", "second.weight", "second.bias")}  # fmt: skip
            arrays = client_arrays(data, client)
            moved, size = delta(block(theta, units[level]), arrays), len(arrays[1])
            for name, value in moved.items():
                key = name + (own if "second" in name else "")
                sums[key] += size * spread(value, present[key].shape)
                held[key] += size * spread(np.ones_like(value), present[key].shape)
        assert held["second.bias"].any() or held["second.bias@b"].any()
        present = {name: value + sums[name] / np.maximum(held[name], 1) for name, value in present.items()}
    for name, value in values_of(module.net).items():
        np.testing.assert_allclose(value, present[name], rtol=1e-9, atol=1e-12)
    narrow = values_of(module.submodel("b"))
    np.testing.assert_allclose(narrow["second.bias"], present["second.bias@b"])
    np.testing.assert_allclose(narrow["first.weight"], present["first.weight"][:2])


def test_names_of_one_level_change_nothing(fit: Fit) -> None:
    plain, copied = (small_module(levels=small_levels(1.0), per_level=names) for names in (None, NORMS))
    for name, module in (("plain", plain), ("copied", copied)):
        fit(module, rounds=2, name=name)
    assert dict(plain.net.state_dict()).keys() == dict(copied.net.state_dict()).keys()
    assert all(torch.equal(p, q) for p, q in zip(plain.net.parameters(), copied.net.parameters(), strict=True))


def of(**changes: Any) -> Any:
    """Return HeteroFL with per-level norms, a sparse uplink with residuals, and Adam on the server."""
    uplink = ErrorFeedback(TopK(0.3))
    server: Any = lambda p: torch.optim.Adam(p, lr=0.01)  # noqa: E731
    return small_module(HeteroFL, per_level=NORMS, uplink=uplink, server_optimizer=server, **changes)


@pytest.mark.parametrize("executor", [Workers(2), Stacked(2)])
def test_other_executors_agree(fit: Fit, executor: Executor) -> None:
    modules = {"first": of(executor=Sequential()), "second": of(executor=executor)}
    for name, module in modules.items():
        fit(module, rounds=2, name=name)
    for p, q in zip(*(m.net.parameters() for m in modules.values()), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-5)


def test_a_resumed_run_ends_with_the_same_bits(fit: Fit, tmp_path: Path) -> None:
    whole, first, again = of(), of(), of()
    fit(whole, rounds=3, name="whole")
    trainer = fit(first, rounds=1, name="first")
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    fit(again, rounds=3, name="again", ckpt=str(tmp_path / "one.ckpt"))
    assert any("@b" in name for name in dict(whole.net.named_parameters()))
    for (name, p), q in zip(whole.net.named_parameters(), again.net.parameters(), strict=True):
        assert torch.equal(p, q), name
    other = small_module(HeteroFL, per_level=["classifier.*"], uplink=ErrorFeedback(TopK(0.3)))
    with pytest.raises(ConfigurationError, match="Expected the checkpoint's net"):
        fit(other, rounds=3, name="other", ckpt=str(tmp_path / "one.ckpt"))


def test_snapshots_have_the_copies(fit: Fit) -> None:
    module = small_module(per_level=NORMS)
    trainer = fit(module, small_data(), rounds=2, callbacks=[Snapshots(every=1)])
    net = load_snapshots(str(trainer.log_dir))[1].fill(module.levels.build("b"), "b")
    expected = module.submodel("b")
    for (name, p), q in zip(net.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(p, q[1]), name


def test_the_servers_own_update_and_unlearning_refuse_copies(fit: Fit) -> None:
    module = small_module(per_level=NORMS, aggregator=FLTrust(), levels=small_levels(1.0, 0.5))
    with pytest.raises(
        ConfigurationError, match="no per_level tensors for FLTrust, .* but got 'blocks.0.norm.weight@b'"
    ):
        fit(module, small_data(server_fraction=0.1), rounds=1)
    trainer = fit(small_module(per_level=NORMS, levels=small_levels(1.0, 0.5)), rounds=1, name="unlearn")
    with pytest.raises(ConfigurationError, match="without per_level tensors to unlearn .* got blocks.0.norm.bias, "):
        Asking(lambda findings: None, 3, 0.1).on_test_start(trainer, trainer.lightning_module)


def test_statistics_of_small_levels_are_gathered_by_all_clients_that_can_run_them() -> None:
    levels = LevelSet(small_net, small_levels(1.0, 0.5), 0, per_level=NORMS)
    assert levels.affords("a", "b")
    assert not levels.affords("b", "a")
    assert not levels.indices["a"].covers(levels.indices["b"])
    assert levels.sizes["a"] == levels.blocks["a"].size < levels.whole.size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_level": ["nrom"]}, "patterns of per_level that match tensors, such as 'blocks.0.conv.weight', but got"),
        ({"per_level": NORMS, "parts": Rolling()}, "a part rule for per_level tensors, such as .*Prefix, but got Roll"),
        (
            {"per_level": NORMS, "parts": RandomMask(), "levels": {"a": Level("a"), "b": Level("b", density=0.5)}},
            "a part rule for per_level tensors, .* but got RandomMask",
        ),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        small_module(**settings)
