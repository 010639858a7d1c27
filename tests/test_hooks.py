"""Hooks on a client's vector, on updates and on the server's step, against formulas."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Trainer
from torch import Tensor

from hetfl import FedAvg
from hetfl.aggregators import HolderMean
from hetfl.cli import main
from hetfl.compression import ErrorFeedback, TopK
from hetfl.compression.base import apart
from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.hooks import ClipDelta, DeltaContext, Hook, Hooks, MedianBound, NormBound
from hetfl.layout import Index, Layout
from hetfl.local import FedDyn, LocalTraining, NoPenalty, Sequential, Stacked, Workers
from hetfl.part import Part
from hetfl.piece import Piece
from hetfl.seeding import generator
from hetfl.selection import Uniform
from hetfl.types import Report, Task
from hetfl.updates import DenseUpdate, LowRankUpdate, SeededUpdate, SparseUpdate, Update
from hetfl.wire import Expected, decode
from tests.conftest import small_levels, small_module
from tests.demo_cases import CONFIGS, DEMO, FEW, UNTESTED
from tests.hook_cases import Momentum, Noise, hooked

Fit = Callable[..., Trainer]
D = 12
PART = Part({"w": (slice(0, 4), slice(0, 3))})
REPORT = Report(3, "a", 1, 0.0)


def rows(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(str(trainer.log_dir)) / "metrics.csv")


def updates() -> dict[str, Update]:
    random = torch.Generator().manual_seed(0)
    values, exact = torch.randn(D, generator=random), torch.randn(3, generator=random)
    layout = Layout({"w": (4, 3)})
    return {
        "dense": DenseUpdate(values, exact=exact),
        "no buffers": DenseUpdate(values),
        "sparse": SparseUpdate(values[:4], torch.tensor([1, 4, 5, 11]), D, exact=exact),
        "seeded": SeededUpdate(values[:2], SeededUpdate.positions(5, (D,), (2,)), D, 5, (2,)),
        "low rank": LowRankUpdate(values[:7], layout, (1,), exact=exact),
    }


@pytest.mark.parametrize("kind", updates())
def test_an_update_above_the_bound_is_clipped(kind: str) -> None:
    update, hook = updates()[kind], NormBound(0.25, action="clip")
    whole = np.concatenate([update.to_dense().double().numpy(), update.exact.double().numpy()])
    norm = math.sqrt(sum(value * value for value in whole.tolist()))
    assert norm > 0.25
    clipped = hook.on_update(update, PART, REPORT)
    actual = torch.cat([clipped.to_dense(), clipped.exact]).double().numpy()
    np.testing.assert_allclose(actual, whole * 0.25 / norm, rtol=1e-6)
    assert hook.columns() == {"defence/clipped": 1.0}
    assert NormBound(norm * 1.0001, action="clip").on_update(update, PART, REPORT) is update


def test_an_update_above_the_bound_is_refused() -> None:
    hook = NormBound(2.5)
    short, long = DenseUpdate(torch.tensor([1.2, 1.6])), DenseUpdate(torch.tensor([3.0, 4.0]))
    assert hook.on_update(short, PART, REPORT) is short
    with pytest.raises(RefusedUpdate, match=r"Expected a norm of at most 2\.5 but got 5"):
        hook.on_update(long, PART, REPORT)
    assert hook.columns() == {"defence/refused": 1.0}
    hook.begin_round(1, 0.1)
    assert hook.columns() == {"defence/refused": 0.0}


def context(client: int = 3, seed: int = 0) -> DeltaContext:
    return DeltaContext(client, "a", 2, 0.1, PART, torch.Generator().manual_seed(seed))


def test_a_client_hook_clips_the_sum_of_delta_and_residual() -> None:
    p_D = torch.tensor([3.0, 4.0])
    assert torch.allclose(ClipDelta(2.0).on_delta(p_D, context()), torch.tensor([1.2, 1.6]))
    assert ClipDelta(5.0).on_delta(p_D, context()) is p_D
    diverged = ClipDelta(1.0).on_delta(torch.tensor([math.inf, 1.0]), context())
    assert not torch.isfinite(diverged).all()  # the compressor refuses it


@pytest.mark.parametrize("half_precision", [False, True])
def test_the_hooks_result_is_compressed_and_what_it_removes_is_not_in_the_residual(half_precision: bool) -> None:
    """Two rounds: p' = clip(Δ + e) + the client's noise, u = top k of p', e' = p' - u."""
    uplink = ErrorFeedback(TopK(0.25), half_precision=half_precision)
    hooks = Hooks(NoPenalty(), [ClipDelta(1.5), Noise(0.3)])
    random, residual = np.random.default_rng(0), np.zeros(D)
    for round in range(2):
        delta_D = torch.from_numpy(random.normal(size=D))
        combine = hooks.combine(Task(3, "a", round, 0, 0.1), PART, 7)
        message = uplink.prepare(3, delta_D, index=PART, round=round, lr=0.1, combine=combine)
        p = delta_D.numpy() + residual
        noise = torch.randn(D, generator=generator(7, "hooks.Noise", round, 3), dtype=torch.float64).numpy()
        changed = p * min(1.0, 1.5 / math.sqrt(float(p @ p))) + 0.3 * 0.1 * noise
        assert float(p @ p) > 1.5**2
        update = decode(message.payload, Expected(round, 3, D, dtype=torch.float64))
        sent = np.where(np.abs(changed) >= np.sort(np.abs(changed))[-3], changed, 0.0)
        np.testing.assert_allclose(update.to_dense().numpy(), sent, rtol=1e-3 if half_precision else 1e-6)
        assert message.residual_D is not None
        residual = message.residual_D.numpy().copy()
        np.testing.assert_allclose(residual, changed - update.to_dense().numpy(), atol=1e-15)
        uplink.accept(message, update)


def test_without_error_feedback_a_hook_changes_the_delta() -> None:
    uplink, hooks = ErrorFeedback(TopK(1.0), enabled=False), Hooks(NoPenalty(), [ClipDelta(1.0)])
    delta_D = torch.full((D,), 2.0)
    combine = hooks.combine(Task(0, "a", 0, 0, 0.1), PART, 0)
    message = uplink.prepare(0, delta_D, index=PART, round=0, lr=0.1, combine=combine)
    sent = decode(message.payload, Expected(0, 0, D)).to_dense()
    assert torch.allclose(sent, torch.full((D,), 1 / math.sqrt(D)))
    assert message.residual_D is None


def test_the_compressor_adds_delta_and_residual_unless_a_hook_needs_the_sum() -> None:
    """The compressors' fused pass adds Δ and e."""
    task = Task(0, "a", 0, 0, 0.1)
    assert Hooks(FedDyn(0.1)).combine(task, PART, 0) is apart
    assert Hooks(NoPenalty(), [NormBound(1.0), Momentum()]).combine(task, PART, 0) is apart
    assert Hooks(NoPenalty(), [NormBound(1.0), ClipDelta(1.0)]).combine(task, PART, 0) is not apart


def test_hooks_clients_and_rounds_have_different_random_numbers() -> None:
    """Two hooks of a class, two clients and two rounds all have different noise."""
    drawn = []
    for client, round in ((0, 0), (1, 0), (0, 1)):
        for hooks in ([Noise(1.0)], [Noise(0.0), Noise(1.0)]):
            combine = Hooks(NoPenalty(), hooks).combine(Task(client, "a", round, 0, 1.0), PART, 0)
            drawn.append(combine(torch.zeros(D), None)[0])
    assert len({tuple(noise.tolist()) for noise in drawn}) == 6


class Watcher(Piece):
    """Records the updates that pieces observe."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def observe(self, update: Update, index: Index, report: Report) -> None:
        self.seen.append(update.to_dense().clone())


class Watched(FedAvg):
    """FedAvg with a watcher."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watcher = Watcher()


def watched(**changes: Any) -> Any:
    return small_module(Watched, levels=small_levels(1.0), **changes)


class Doubled(Hook):
    """Doubles the server's step."""

    def on_step(self, model: int, delta: dict[str, Tensor], holders: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: 2 * step for name, step in delta.items()}


def test_the_step_uses_clipped_updates_and_pieces_observe_updates_as_sent(fit: Fit) -> None:
    bound = 0.3
    module = watched(hooks=[NormBound(bound, action="clip"), Doubled()], aggregator=HolderMean())
    before = torch.cat([p.detach().double().flatten() for p in module.net.parameters()])
    trainer = fit(module, rounds=1, precision="64-true", limit_val_batches=0)
    after = torch.cat([p.detach().flatten() for p in module.net.parameters()])
    seen = module.watcher.seen
    norms = [float(update.norm()) for update in seen]
    assert max(norms) > bound
    mean = torch.stack([u * min(1.0, bound / norm) for u, norm in zip(seen, norms, strict=True)]).mean(0)
    torch.testing.assert_close(after - before, 2 * mean, rtol=0, atol=1e-7)
    assert rows(trainer)["defence/clipped"].tolist() == [float(sum(norm > bound for norm in norms))]


def test_client_hooks_are_applied_in_a_run(fit: Fit) -> None:
    module = watched(hooks=[ClipDelta(0.1)], uplink=ErrorFeedback(TopK(0.9)), selection=Uniform(12))
    fit(module, rounds=2, limit_val_batches=0)
    norms = [float(update.norm()) for update in module.watcher.seen]
    assert len(norms) == 24
    assert 0.099 < max(norms) < 0.1 + 1e-6


def test_a_refused_update_is_counted_and_changes_no_state(fit: Fit) -> None:
    """Updates above the median norm of the first run are refused: neither observed nor remembered."""
    first = watched(uplink=ErrorFeedback(TopK(0.2)))
    fit(first, name="first", rounds=1, limit_val_batches=0)
    norms = sorted(float(update.norm()) for update in first.watcher.seen)
    module = watched(uplink=ErrorFeedback(TopK(0.2)), hooks=[NormBound((norms[1] + norms[2]) / 2)])
    with pytest.warns(UserWarning, match=r"update of client \d+ at level a refused: Expected a norm of at most"):
        trainer = fit(module, rounds=1, limit_val_batches=0)
    columns = rows(trainer)
    assert columns["defence/refused"].tolist() == columns["comm/refused"].tolist() == [2.0]
    assert sorted(float(update.norm()) for update in module.watcher.seen) == norms[:2]
    assert len(module.uplink.residuals.clients()) == 2


@pytest.mark.filterwarnings("ignore:.*refused.*")
def test_the_counts_of_several_bounds_add_up(fit: Fit) -> None:
    bounds = [NormBound(1e-3, action="clip"), NormBound(0.5e-3, action="clip"), MedianBound(first=10.0)]
    columns = rows(fit(watched(hooks=bounds), rounds=1, limit_val_batches=0))
    assert columns["defence/clipped"].tolist() == [8.0]  # all four updates, twice
    assert columns["defence/refused"].tolist() == [0.0]


def test_a_bound_that_refuses_all_updates_ends_the_run(fit: Fit) -> None:
    with (
        pytest.warns(UserWarning, match="refused"),
        pytest.raises(ConfigurationError, match=r"all 4 were refused .* a larger bound of the hooks"),
    ):
        fit(watched(hooks=[NormBound(1e-9)]), rounds=1)


@pytest.mark.usefixtures("double_precision")
def test_hooks_give_the_same_values_in_every_executor(fit: Fit) -> None:
    options: dict[str, Any] = {"rounds": 2, "precision": "64-true", "limit_val_batches": 0}
    results = {}
    for executor in (Sequential(), Workers(2), Stacked(2)):
        module = hooked(executor=executor)
        trainer = fit(module, name=type(executor).__name__, **options)
        results[type(executor)] = module.models.tensors[0], rows(trainer)["defence/clipped"]
    (values, clipped), plain = results[Sequential], small_module(uplink=ErrorFeedback(TopK(0.3)))
    fit(plain, name="plain", **options)
    assert clipped.sum() > 0
    for name, tensor in values.items():
        assert torch.equal(results[Workers][0][name], tensor)
        assert torch.allclose(results[Stacked][0][name], tensor, rtol=0, atol=1e-10)
    assert any(not torch.allclose(plain.models.tensors[0][name], tensor) for name, tensor in values.items())
    assert all(results[kind][1].equals(clipped) for kind in results)


def test_hooks_resume_with_the_same_bits(fit: Fit, tmp_path: Path) -> None:
    whole, resumed, options = hooked(), hooked(), {"rounds": 4, "limit_val_batches": 0}
    straight = fit(whole, name="whole", **options)
    fit(hooked(), rounds=2, name="half", limit_val_batches=0).save_checkpoint(tmp_path / "half.ckpt")
    again = fit(resumed, name="resumed", ckpt=str(tmp_path / "half.ckpt"), **options)
    weights: Mapping[str, Tensor] = whole.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in resumed.state_dict().items())
    pd.testing.assert_frame_equal(
        rows(straight)[2:].reset_index(drop=True).astype(float), rows(again).astype(float), check_exact=True
    )
    for hooks, message in (
        ([Noise(0.02), NormBound(0.6, action="clip"), Momentum()], r"hooks.NormBound .*0.2, .* but got .*0.6"),
        ([Noise(0.02), Momentum()], r"hooks \(Noise, NormBound, Momentum\) but got Noise, Momentum"),
        ([NormBound(0.2, action="clip"), Noise(0.02), Momentum()], "but got NormBound, Noise, Momentum"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            fit(hooked(hooks=hooks), rounds=4, name="other", ckpt=str(tmp_path / "half.ckpt"))


class Everywhere(Hook):
    """Adds 1 to every entry of the step."""

    def on_step(self, model: int, delta: dict[str, Tensor], holders: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: step + 1 for name, step in delta.items()}


def test_hooks_are_applied_in_order_and_entries_without_holders_stay() -> None:
    hooks = Hooks(NoPenalty(), [Everywhere(), Momentum(0.5)])
    delta, holders = {"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([3.0, 0.0])}
    assert hooks.on_step(0, delta, holders)["w"].tolist() == [3.0, 0.0]
    assert hooks.on_step(0, delta, holders)["w"].tolist() == [4.5, 0.0]
    clip, refuse = NormBound(1.0, action="clip"), NormBound(2.0)
    long = DenseUpdate(torch.tensor([3.0, 4.0]))
    clipped = Hooks(NoPenalty(), [clip, refuse]).on_update(long, PART, REPORT)
    assert torch.allclose(clipped.to_dense(), torch.tensor([0.6, 0.8]))
    with pytest.raises(RefusedUpdate):
        Hooks(NoPenalty(), [refuse, clip]).on_update(long, PART, REPORT)


def test_clipping_does_not_change_feddyns_memories(fit: Fit) -> None:
    """FedDyn's memories use updates as sent; the server's part is not clipped."""
    memories = []
    for hooks in ([], [NormBound(0.1, action="clip")]):
        feddyn = FedDyn(0.2)
        module = watched(hooks=hooks, local=LocalTraining(batch_size=20, penalty=feddyn))
        fit(module, rounds=1, name=f"run{len(hooks)}", limit_val_batches=0)
        memories.append((feddyn.server[0], {k: feddyn.memories.load(k) for k in feddyn.memories.clients()}))
    (server, clients), (other_server, other_clients) = memories
    assert all(torch.equal(other_server[name], total) for name, total in server.items())
    assert clients.keys() == other_clients.keys()
    assert all(torch.equal(other_clients[k][n], block) for k, of in clients.items() for n, block in of.items())


class Wrong(Hook):
    """Returns results of a wrong type or shape."""

    def on_delta(self, p_D: Tensor, ctx: DeltaContext) -> Tensor:
        return p_D[1:]

    def on_update(self, update: Update, index: Index, report: Report) -> Update:
        return DenseUpdate(update.to_dense().double())

    def on_step(self, model: int, delta: dict[str, Tensor], holders: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}


def test_hook_results_of_wrong_type_or_shape_are_refused() -> None:
    hooks = Hooks(NoPenalty(), [Wrong()])
    with pytest.raises(ConfigurationError, match=r"float32 \(12,\) from Wrong.on_delta but got torch.float32 \(11,\)"):
        hooks.combine(Task(0, "a", 0, 0, 0.1), PART, 0)(torch.zeros(D), None)
    with pytest.raises(ConfigurationError, match=r"float32 \(12,\) from Wrong.on_update but got torch.float64 \(12,\)"):
        hooks.on_update(DenseUpdate(torch.zeros(D)), PART, REPORT)
    with pytest.raises(ConfigurationError, match=r"steps of \['w'\] from Wrong.on_step but got \[\]"):
        hooks.on_step(0, {"w": torch.zeros(2)}, {"w": torch.ones(2)})


class Forgetful(Hook):
    """Returns nothing."""

    def on_delta(self, p_D: Tensor, ctx: DeltaContext) -> Tensor:
        return None  # type: ignore[return-value]

    def on_update(self, update: Update, index: Index, report: Report) -> Update:
        return None  # type: ignore[return-value]

    def on_step(self, model: int, delta: dict[str, Tensor], holders: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return None  # type: ignore[return-value]


def test_a_hook_that_returns_nothing_is_named() -> None:
    hooks = Hooks(NoPenalty(), [Forgetful()])
    with pytest.raises(ConfigurationError, match=r"a tensor from Forgetful\.on_delta but got NoneType"):
        hooks.combine(Task(0, "a", 0, 0, 0.1), PART, 0)(torch.zeros(D), None)
    with pytest.raises(ConfigurationError, match=r"an update from Forgetful\.on_update but got NoneType"):
        hooks.on_update(DenseUpdate(torch.zeros(D)), PART, REPORT)
    with pytest.raises(ConfigurationError, match=r"steps of \['w'\] from Forgetful\.on_step but got NoneType"):
        hooks.on_step(0, {"w": torch.zeros(2)}, {"w": torch.ones(2)})


class Grouped(Hook):
    """Depends on the clusters of clients."""

    clusters: tuple[int, ...] = ()

    def regroup(self, clusters: Any) -> None:
        self.clusters = tuple(clusters)


class Named(Hook):
    """Has a column."""

    def columns(self) -> dict[str, float]:
        return {"mine": 1.0}


def test_invalid_lists_of_hooks_are_refused() -> None:
    bound, grouped = NormBound(1.0), Grouped()
    with pytest.raises(ConfigurationError, match="Expected a hook .* but got NoneType"):
        Hooks(NoPenalty(), [None])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="every hook once among hooks but got one NormBound twice"):
        Hooks(NoPenalty(), [bound, bound])
    with pytest.raises(ConfigurationError, match="both Named and Named_2 have mine"):
        Hooks(NoPenalty(), [Named(), Named()]).columns()
    hooks = Hooks(NoPenalty(), [bound, NormBound(2.0), grouped])
    assert list(hooks.members()) == ["NormBound", "NormBound_2", "Grouped"]
    assert hooks.describe() == "NormBound, NormBound_2, Grouped"
    assert Hooks(NoPenalty(), [NormBound(2.0), NormBound(1.0, action="clip")]).columns() == {}
    hooks.regroup([0, -1])
    assert grouped.clusters == (0, -1)


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (
            {"class_path": "hetfl.hooks.NormBound", "init_args": {"max_norm": 0}},
            "max_norm above 0 for NormBound but got",
        ),
        slow({"class_path": "hetfl.hooks.NormBound", "init_args": {"max_norm": 1, "action": "cut"}}, "cut"),
        slow({"class_path": "hetfl.hooks.ClipDelta", "init_args": {"max_norm": -1}}, "max_norm above 0 for ClipDelta"),
        slow({"class_path": "hetfl.selection.Uniform"}, "hetfl.selection.Uniform"),
    ],
)
def test_wrong_settings_are_reported_in_one_line(
    hook: dict[str, object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", *DEMO, f"--model.hooks={json.dumps([hook])}", f"--trainer.logger.root={tmp_path}"])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("hetfl: error: ")
    assert message in last


@pytest.mark.parametrize("file", ["norm_bound", slow("clip_delta")])
def test_every_hook_file_runs(file: str, tmp_path: Path) -> None:
    levels = '--model.levels={"a": {"width": 1.0}}'
    small = ["--trainer.max_epochs=1", levels, "--model.net.hidden=[16,16]", *FEW, *UNTESTED]
    main(["fit", *DEMO, "-c", str(CONFIGS / f"hooks/{file}.yaml"), *small, f"--trainer.logger.root={tmp_path}"])
    (metrics,) = tmp_path.rglob("metrics.csv")
    assert pd.read_csv(metrics)["train/loss"].between(0, 10).all()
