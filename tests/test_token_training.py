"""Training of token nets: every part rule, every executor, and exits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn

from hetfl import DepthFL, FederatedModule, HeteroFL, Level
from hetfl.data import TensorData
from hetfl.local import LocalTraining, Sequential, Stacked, Workers
from hetfl.objectives import LanguageModelling
from hetfl.parts import PartRule, Prefix, RandomChannels, RandomMask, Rolling
from hetfl.types import Task
from tests.conftest import small_module
from tests.local_cases import Problem, bench_of, results, sgd
from tests.token_cases import CLASSES, SMALL, VOCABULARY, tokens

Fit = Callable[..., Trainer]

LEVELS = {"a": Level("a"), "b": Level("b", 0.5)}
DEPTHS = {"a": Level("a", depth=3), "b": Level("b", 0.5, 2), "c": Level("c", depth=1)}


PAIRS = [
    *(("lstm", rule) for rule in (Prefix, RandomChannels)),
    *(("transformer", rule) for rule in (Rolling, RandomMask)),
    *(pytest.param("lstm", rule, marks=pytest.mark.slow) for rule in (Rolling, RandomMask)),
    *(pytest.param("transformer", rule, marks=pytest.mark.slow) for rule in (Prefix, RandomChannels)),
]


class Pixels(nn.Module):
    """Reads the first pixels of an image as tokens."""

    def __init__(self, kind: str, **sizes: Any) -> None:
        super().__init__()
        self.net = SMALL[kind](10, **sizes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        logits: Tensor = self.net((x_NCHW[:, 0, 0, :5] * VOCABULARY).long())
        return logits


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(("kind", "made"), PAIRS)
def test_every_part_rule_trains_alike_in_every_executor(kind: str, made: type[PartRule]) -> None:
    """Stacked steps equal single ones to 1e-12, and steps in other processes are equal bit for bit."""
    rule = made()
    levels = {**LEVELS, "b": Level("b", 0.5, density=0.4)} if rule.masks else LEVELS
    problem = Problem(LocalTraining(batch_size=8, optimizer=sgd()), partial(Pixels, kind), levels)
    rule.meet(problem.levels, seed=7)
    tasks = [Task(k, level, 3, 3, 0.05, part=rule.part(level, 3, k)) for k in range(3) for level in "ba"]
    bench = partial(bench_of, problem, (12, 9, 12))
    expected, together = results(Sequential(), bench(), tasks), results(Stacked(), bench(), tasks)
    workers = Workers(2)
    try:
        apart = results(workers, bench(), tasks)
    finally:
        workers.close()
    for (delta, *_), (one, *_), (other, *_) in zip(expected, together, apart, strict=True):
        assert delta.abs().max() > 1e-4
        assert torch.allclose(one, delta, rtol=0, atol=1e-12)
        assert torch.equal(other, delta)


def data() -> TensorData:
    """Return sequences whose class is the first token modulo the number of classes."""
    ids = tokens(60)
    targets = ids[:, 0] % CLASSES
    return TensorData(
        train_inputs=ids,
        train_targets=targets,
        test_inputs=ids[:20],
        test_targets=targets[:20],
        num_clients=4,
        num_classes=CLASSES,
    )


def trained(fit: Fit, kind: str, method: type[FederatedModule] = HeteroFL, **settings: Any) -> None:
    """Train a net for two rounds, and check that every tensor has changed."""
    module = small_module(method, net=partial(SMALL[kind], CLASSES), **settings)
    before = {name: tensor.clone() for name, tensor in module.net.state_dict().items()}
    fit(module, data(), rounds=2)
    after = module.net.state_dict()
    assert all(bool((after[name] != tensor).any()) for name, tensor in before.items())


def test_an_lstm_trains_with_rolling_windows_of_width(fit: Fit) -> None:
    """The run also checks that the nets nest in the parts of two rounds, and counts FLOPs."""
    trained(fit, "lstm", levels=LEVELS, parts=Rolling())


def test_a_transformer_of_fewer_blocks_needs_no_exits(fit: Fit) -> None:
    trained(fit, "transformer", levels=DEPTHS, parts=RandomChannels())


class Tied(nn.Module):
    """Words whose embedding is the classifier's weight."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels = round(8 * width)
        self.embedding = nn.Embedding(VOCABULARY, channels)
        self.hidden, self.classifier = nn.Linear(channels, channels), nn.Linear(channels, VOCABULARY)
        self.classifier.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.relu(self.hidden(self.embedding(ids))))
        return logits


def test_rows_of_tied_weights_are_sent_by_the_clients_words(fit: Fit) -> None:
    """Nobody has the odd words: weight decay would move their rows if they were sent."""
    ids = tokens(60) // 2 * 2
    words = TensorData(
        train_inputs=ids,
        train_targets=ids,
        test_inputs=ids[:20],
        test_targets=ids[:20],
        num_clients=4,
        num_classes=VOCABULARY,
        objective=LanguageModelling(),
    )
    module: Any = small_module(HeteroFL, net=Tied, levels=LEVELS)
    before = {name: tensor.clone() for name, tensor in module.net.state_dict().items()}
    fit(module, words, rounds=2)
    for name in ("embedding.weight", "classifier.bias"):
        moved = (module.net.state_dict()[name] != before[name]).view(VOCABULARY, -1).any(1)
        assert torch.equal(moved[1::2], torch.zeros(VOCABULARY // 2, dtype=torch.bool)), name
        assert moved[::2].any()


@pytest.mark.parametrize(
    "settings", [{"executor": Stacked()}, {"distillation": False, "deepest_only": True}], ids=["depthfl", "inclusivefl"]
)
def test_a_transformer_with_exits_trains_by_depth_and_width(fit: Fit, settings: dict[str, Any]) -> None:
    trained(fit, "exits", DepthFL, levels=DEPTHS, **settings)
