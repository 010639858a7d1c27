"""DepthFL: its loss against a sum over pairs, the heads that clients train, and whole runs of mixed depths."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Trainer
from torch import Tensor, nn
from torch.optim import SGD

from hetfl import ConfigurationError, DepthFL, Level
from hetfl.compression import ErrorFeedback, GammaFedHT
from hetfl.display.summary import level_table
from hetfl.federation.callback import FederatedCallback
from hetfl.layout import Index
from hetfl.local import FedDyn, LocalTraining, Workers
from hetfl.methods.depthfl import distillation_loss, ramp
from hetfl.models import MultiExitConvNet
from hetfl.objectives import Classification
from hetfl.types import ClientContext, Report
from hetfl.updates import Update
from tests.conftest import small_data, small_module

Fit = Callable[..., Trainer]
CONTEXT = ClientContext(client=0, round=0, labels=torch.ones(5, dtype=torch.bool))


def net(*, width: float = 1.0, depth: int = 3) -> nn.Module:
    return MultiExitConvNet(hidden=(8, 8, 16), depth=depth, width=width)


LEVELS = {"a": Level("a", depth=3), "b": Level("b", depth=2), "c": Level("c", depth=1)}


def depthfl(**changes: Any) -> DepthFL:
    module = small_module(**{"kind": DepthFL, "net": net, "levels": LEVELS, **changes})
    assert isinstance(module, DepthFL)
    return module


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max())
    return e / e.sum()


def brute_force(logits: Any, targets: Any, weight: float) -> float:
    """Return the loss, sample by sample and pair by pair, as in the authors' code."""
    heads, samples, _ = logits.shape
    total = 0.0
    for i in range(heads):
        total += float(np.mean([-math.log(softmax(logits[i, n])[targets[n]]) for n in range(samples)]))
        for j in range(heads):
            if j != i:
                pairs = []
                for n in range(samples):
                    teacher, student = softmax(logits[j, n]) + 1e-7, softmax(logits[i, n])
                    pairs.append(sum(p * (math.log(p) - math.log(q)) for p, q in zip(teacher, student, strict=True)))
                total += weight / (heads - 1) * float(np.mean(pairs))
    return total


def module_at(round: int, **changes: Any) -> tuple[DepthFL, ClientContext]:
    return depthfl(**changes), ClientContext(client=0, round=round, labels=CONTEXT.labels)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 400), st.integers(0, 10**6))
def test_loss_equals_the_sum_over_heads_and_pairs(heads: int, samples: int, round: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits, targets = 2 * random.normal(size=(heads, samples, 5)), random.integers(0, 5, samples)
    outputs, labels = torch.from_numpy(logits), torch.from_numpy(targets)
    expected = brute_force(logits, targets, ramp(round, 300))
    loss = Classification().per_exit(outputs, labels).sum() + ramp(round, 300) * distillation_loss(outputs)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_gradient_flows_into_the_student_head_only() -> None:
    """Against autograd through the pairs with the teacher head detached; the wrong variants differ."""
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 4, 5, generator=random, dtype=torch.float64, requires_grad=True)

    def pairs(other: Callable[[Tensor], Tensor], reverse: bool) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i in range(3):
            for j in range(3):
                if i != j:
                    p, q = other(logits[j].softmax(-1)) + 1e-7, logits[i].softmax(-1)
                    p, q = (q, p) if reverse else (p, q)
                    total = total + (p * (p.log() - q.log())).sum(-1).mean() / 2
        return total

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, logits)[0]

    actual = gradient(distillation_loss(logits))
    assert torch.allclose(actual, gradient(pairs(lambda p: p.detach(), False)), rtol=0, atol=1e-12)
    assert not torch.allclose(actual, gradient(pairs(lambda p: p, False)), atol=1e-3)
    assert not torch.allclose(actual, gradient(pairs(lambda p: p.detach(), True)), atol=1e-3)


def test_loss_accepts_a_leading_client_dimension() -> None:
    random = torch.Generator().manual_seed(2)
    outputs, targets = torch.randn(6, 3, 4, 5, generator=random), torch.randint(0, 5, (6, 4), generator=random)
    module, ctx = module_at(150)
    stacked = module.loss(outputs, targets, ctx)
    single = torch.stack([module.loss(o, t, ctx) for o, t in zip(outputs, targets, strict=True)])
    assert stacked.shape == (6,)
    assert torch.allclose(stacked, single)


def test_ramp_rises_from_near_zero_to_one() -> None:
    assert [round(ramp(t, 300), 4) for t in (0, 100, 200, 300, 1000)] == [0.0067, 0.1084, 0.5738, 1.0, 1.0]
    assert ramp(0, 0) == 1.0


def test_settings_select_variants_of_the_loss() -> None:
    random = torch.Generator().manual_seed(3)
    outputs, targets = torch.randn(3, 4, 5, generator=random), torch.randint(0, 5, (4,), generator=random)
    plain, ctx = module_at(0, distillation=False)
    assert torch.equal(plain.loss(outputs, targets, ctx), plain.objective.per_exit(outputs, targets).sum())
    deepest, ctx = module_at(0, distillation=False, deepest_only=True)
    assert torch.equal(deepest.loss(outputs, targets, ctx), nn.functional.cross_entropy(outputs[-1], targets))
    alone, ctx = module_at(300)
    assert torch.equal(alone.loss(outputs[:1], targets, ctx), nn.functional.cross_entropy(outputs[0], targets))
    inputs, whole = torch.randn(2, 1, 8, 8, generator=random), net()
    assert torch.equal(deepest.predict(whole, inputs), whole(inputs)[-1])
    assert torch.equal(plain.predict(whole, inputs), whole(inputs).mean(0))
    with pytest.raises(ConfigurationError, match="distillation false with deepest_only"):
        depthfl(deepest_only=True)
    with pytest.raises(ConfigurationError, match="ramp_rounds of at least 0"):
        depthfl(ramp_rounds=-1)


class Uploads(FederatedCallback):
    """Records the level and the sent tensor names of each client in the last round."""

    def __init__(self) -> None:
        self.names: dict[int, tuple[str, set[str]]] = {}

    def on_update(self, trainer: Trainer, module: Any, update: Update, index: Index, report: Report) -> None:
        self.names[report.client] = (report.level, set(index))


def test_clients_send_the_stages_of_their_depth_and_entries_without_holders_stay(fit: Fit) -> None:
    uploads = Uploads()
    module = depthfl()
    before = {name: tensor.detach().clone() for name, tensor in module.models.tensors[0].items()}
    fit(module, rounds=1, callbacks=[uploads])
    held = set().union(*(names for _, names in uploads.names.values()))
    for level, names in uploads.names.values():
        depth = LEVELS[level].depth
        assert names == {n for n in before if int(n.split(".")[1]) < (depth or 0)}
    for name, tensor in module.models.tensors[0].items():
        assert torch.equal(tensor, before[name]) == (name not in held)


def test_only_the_deepest_head_is_sent_if_only_it_is_trained(fit: Fit) -> None:
    uploads = Uploads()
    module = depthfl(distillation=False, deepest_only=True)
    fit(module, rounds=2, callbacks=[uploads])
    assert {level for level, _ in uploads.names.values()} > {"c"}
    for level, names in uploads.names.values():
        depth = LEVELS[level].depth or 0
        heads = {int(n.split(".")[1]) for n in names if n.split(".")[2] in ("exit", "classifier")}
        trunks = {int(n.split(".")[1]) for n in names if n.split(".")[2] == "trunk"}
        assert heads == {depth - 1}
        assert trunks == set(range(depth))


def test_a_run_with_all_options_learns_and_logs_heads(fit: Fit, tmp_path: Path) -> None:
    """Mixed depth and width, FedDyn, compression, workers: learns, and has the same bits as a run in one process."""
    levels = {**LEVELS, "d": Level("d", width=0.5, depth=2)}

    def module(**changes: Any) -> DepthFL:
        local = LocalTraining(2, 10, optimizer=lambda p: SGD(p, 0.1, 0.9), penalty=FedDyn(0.1))
        uplink = ErrorFeedback(GammaFedHT(density=0.3))
        return depthfl(levels=levels, local=local, uplink=uplink, ramp_rounds=3, **changes)

    one, two, data = module(), module(executor=Workers(2)), partial(small_data, val_fraction=0.1)
    trainer = fit(one, data(), rounds=5, name="one", check_val_every_n_epoch=5)
    fit(two, data(), rounds=5, name="two", limit_val_batches=0)
    assert all(torch.equal(two.models.tensors[0][name], tensor) for name, tensor in one.models.tensors[0].items())
    trainer.test(one, datamodule=data(), verbose=False)
    last = pd.read_csv(next(tmp_path.glob("one/*/metrics.csv"))).iloc[-1]
    heads = [f"val/accuracy_by_head/{i}" for i in (1, 2, 3)]
    assert last[[*heads, *(f"val/accuracy_by_level/{level}" for level in "abcd")]].notna().all()
    assert last["val/accuracy_by_level/a"] > 0.5  # of ten classes
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    printed = level_table(one, metrics)  # type: ignore[arg-type]
    cells = dict(zip(map(str, printed.columns[0].cells), map(str, printed.columns[-1].cells), strict=True))
    assert list(cells) == ["a", "b", "c", "d", "global", "head 1", "head 2", "head 3"]
    assert cells["head 2"] == f"{100 * metrics['test/accuracy_by_head/2']:.2f} %"


def test_prediction_is_the_mean_of_the_heads(fit: Fit) -> None:
    module = depthfl()
    trainer = fit(module, rounds=1)
    inputs = small_data()
    inputs.setup()
    samples = inputs.transform.eval(inputs.client_data(0).inputs)
    for level in LEVELS:
        sub = module.submodel(level)
        assert torch.allclose(module.predict(sub, samples), torch.stack(list(sub(samples))).mean(0))
    assert trainer.global_step == 1


def test_level_names_that_equal_head_names_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="none of them head_"):
        depthfl(levels={"head_1": Level("head_1")})
