"""A round over nodes equals a round in one process bit for bit; messages pass between nodes as bytes in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

import torch
from lightning import Trainer
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from hetfl import FederatedModule, Level
from hetfl.aggregators import HolderMean
from hetfl.clustering import IFCA
from hetfl.compression import (
    Chain,
    Compressor,
    DynamicRange,
    ErrorFeedback,
    GammaFedHT,
    HardThreshold,
    Identity,
    LogQuantizer,
    LowRank,
    RandomK,
    TopK,
)
from hetfl.compression.staleness import Decay
from hetfl.downlink import Downlink
from hetfl.fleet import EUCB
from hetfl.hooks import NormBound
from hetfl.local import FedDyn, LocalTraining
from hetfl.parts import RandomMask, RankedMask, Rolling, ScoredChannels, TrainedRanks
from hetfl.pruning import Cubic
from hetfl.selection import PowerOfChoice, Uniform
from tests.conftest import small_levels, small_module
from tests.fleet_cases import varied
from tests.flower_cases import FakePost, federated, make_node
from tests.hook_cases import Momentum, Noise
from tests.lora_cases import adapted, ranks

Fit = Callable[..., Trainer]
SPLIT = {11: range(5), 12: range(5, 8), 13: range(8, 12)}
"""Clients of each node."""


def rows(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(trainer.logger.save_dir) / "metrics.csv")  # type: ignore[union-attr,arg-type]


def cosine(optimizer: Any) -> Any:
    return CosineAnnealingLR(optimizer, 5, 0.01)


def local(**changes: Any) -> LocalTraining:
    return LocalTraining(1, 10, 1.0, lambda p: SGD(p, 0.05, 0.9), **changes)


CASES: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, Any]]] = {
    "gamma-fedht": (
        lambda: {
            "uplink": ErrorFeedback(GammaFedHT(density=0.1), half_precision=True),
            "levels": small_levels(1, 0.5, 0.25, 0.125, 0.0625),
            "local": local(scheduler=cosine),
            "server_optimizer": lambda p: Adam(p, lr=0.01),
        },
        {},
    ),
    "feddyn and decaying residuals": (
        lambda: {
            "local": local(penalty=FedDyn(0.1)),
            "uplink": ErrorFeedback(TopK(0.2), staleness=Decay(0.5)),
        },
        {},
    ),
    "low rank in float64": (lambda: {"uplink": ErrorFeedback(LowRank(2))}, {"precision": "64-true"}),
    "stragglers without error feedback": (
        lambda: {
            "local": LocalTraining(2, 10, optimizer=lambda p: SGD(p, 0.05), stragglers=0.5),
            "uplink": ErrorFeedback(RandomK(0.3), enabled=False),
        },
        {},
    ),
    "clusters, a budget and codes": (
        lambda: {
            "clustering": IFCA(2),
            "uplink": ErrorFeedback(Chain(HardThreshold(budget=0.1), LogQuantizer(3))),
            "local": local(scheduler=cosine),
        },
        {},
    ),
    "losses asked for, everything sent": (
        lambda: {"selection": PowerOfChoice(8, 4), "uplink": ErrorFeedback(Identity())},
        {},
    ),
    "rolling windows and personal heads": (
        lambda: {
            "parts": Rolling(),
            "personal": ["classifier.*"],
            "uplink": ErrorFeedback(TopK(0.2, by="weight")),
        },
        {},
    ),
    "the best channels and a mean over the cohort": (
        lambda: {
            "parts": ScoredChannels(fan_out=True, refresh_every=2),
            "aggregator": HolderMean("cohort"),
            "uplink": ErrorFeedback(TopK(0.2)),
        },
        {},
    ),
    "coded downloads, rotated, of masks": (
        lambda: {
            "downlink": Downlink(DynamicRange(4, 64, stochastic=True), rotate=True, block=64),
            "parts": RandomMask(),
            "levels": {"a": Level("a"), "b": Level("b", 0.5, density=0.3)},
            "personal": ["classifier.bias"],
            "uplink": ErrorFeedback(TopK(0.2, scope="layer", by="weight")),
            "statistics_clients": None,
        },
        {},
    ),
    "coded downloads of models that share": (
        lambda: {
            "downlink": Downlink(exact=["*bias"], statistics=DynamicRange(12)),
            "clustering": IFCA(2, shared=["blocks.*"]),
        },
        {},
    ),
    "pruning by magnitude": (
        lambda: {
            "parts": RankedMask(scope="global", schedule=Cubic(), shrink=True, erase=True),
            "levels": {"a": Level("a"), "b": Level("b", density=0.3)},
            "uplink": ErrorFeedback(TopK(0.2)),
        },
        {},
    ),
    "a bandit and late clients": (
        lambda: {"assignment": EUCB(), "fleet": varied(failure_rate=0.2), "deadline": 8.0, "selection": Uniform(8)},
        {},
    ),
    "complements of coded masks": (
        lambda: {
            "parts": RankedMask(complement=True),
            "levels": {"a": Level("a"), "b": Level("b", 0.5, density=0.3)},
            "downlink": Downlink(exact=["*bias"]),
            "uplink": ErrorFeedback(TopK(0.2)),
        },
        {},
    ),
    "adapters of a preinstalled base": (
        lambda: {
            "net": adapted(),
            "levels": ranks(4, 2, 1),
            "base": "preinstalled",
            "parts": TrainedRanks({"a": 2}),
            "uplink": ErrorFeedback(GammaFedHT(density=0.2)),
        },
        {},
    ),
    "losses with personal tensors": (
        lambda: {"selection": PowerOfChoice(candidates=6, clients_per_round=4), "personal": ["classifier.*"]},
        {},
    ),
    "masks and hooks": (
        lambda: {
            "hooks": [Noise(0.02), NormBound(0.2, action="clip"), Momentum()],
            "parts": RandomMask(),
            "levels": {"a": Level("a"), "b": Level("b", 0.5, density=0.3)},
            "local": local(penalty=FedDyn(0.1)),
            "uplink": ErrorFeedback(TopK(0.2)),
        },
        {},
    ),
}


def same_bits(alone: FederatedModule, on_nodes: FederatedModule) -> None:
    for name, value in alone.state_dict().items():
        assert torch.equal(value, on_nodes.state_dict()[name]), name


@pytest.mark.parametrize("case", CASES)
def test_nodes_give_the_same_bits_as_one_process(fit: Fit, tmp_path: Path, case: str) -> None:
    changes, precision = CASES[case]
    options: dict[str, Any] = {"rounds": 3, "check_val_every_n_epoch": 3, **precision}

    def make() -> FederatedModule:
        return small_module(**changes())

    alone = make()
    expected = rows(fit(alone, name="alone", **options))
    nodes = {node: make_node(of, tmp_path / f"node{node}", make, **precision) for node, of in SPLIT.items()}
    on_nodes = federated(make(), FakePost(nodes))
    actual = rows(fit(on_nodes, name="nodes", **options))
    # Personal tensors stay on the nodes, so the server has no accuracy with them.
    expected = expected.drop(columns="local/personal_accuracy", errors="ignore")
    same_bits(alone, on_nodes)
    pd.testing.assert_frame_equal(actual, expected, check_exact=True)


@pytest.mark.parametrize("compressor", [lambda: GammaFedHT(density=0.1), lambda: TopK(0.2, schedule="lr")])
def test_learning_rates_and_rounds_are_those_of_the_server(
    fit: Fit, tmp_path: Path, compressor: Callable[[], Compressor]
) -> None:
    """A node may have another schedule in its configuration: thresholds follow that of the server."""

    def make(lr: float = 0.05) -> FederatedModule:
        training = LocalTraining(1, 10, 1.0, lambda p: SGD(p, lr, 0.9), scheduler=cosine)
        return small_module(uplink=ErrorFeedback(compressor()), local=training)

    alone = make()
    fit(alone, name="alone", rounds=3)
    nodes = {
        node: make_node(of, tmp_path / f"node{node}", lambda lr=lr: make(lr), max_epochs=rounds)  # type: ignore[misc]
        for (node, of), lr, rounds in zip(SPLIT.items(), (0.05, 0.1, 0.5), (3, 9, 3), strict=True)
    }
    on_nodes = federated(make(), FakePost(nodes))
    fit(on_nodes, name="nodes", rounds=3)
    same_bits(alone, on_nodes)
