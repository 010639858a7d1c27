"""Shared by the tests against the reference: shapes and rules of small nets, and the comparison of two whole runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning import Trainer
from torch.optim import SGD

from hetfl import FederatedModule
from hetfl.data import FederatedDataModule
from hetfl.piece import Facts
from hetfl.selection import Probe, Selection
from tests.reference.evaluation import Evaluation
from tests.reference.federation import Federation
from tests.reference.nets import mlp
from tests.reference.rules import Rules
from tests.reference.run import Row, check_clients, check_rows, check_values, play

Fit = Callable[..., Trainer]


def sgd(lr: float, **settings: float) -> Callable[..., SGD]:
    return lambda parameters: SGD(parameters, lr=lr, **settings)  # type: ignore[arg-type]


def conv_shapes(*sizes: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Return the tensor shapes of a ConvNet with one input channel and blocks of these sizes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (incoming, outgoing) in enumerate(zip((1, *sizes), sizes, strict=False)):
        conv, norm = f"blocks.{number}.conv", f"blocks.{number}.norm"
        shapes |= {f"{conv}.weight": (outgoing, incoming, 3, 3), f"{conv}.bias": (outgoing,)}
        shapes |= {f"{norm}.weight": (outgoing,), f"{norm}.bias": (outgoing,)}
    return {**shapes, "classifier.weight": (classes, sizes[-1]), "classifier.bias": (classes,)}


def compare(
    fit: Fit, module: FederatedModule, data: FederatedDataModule, federation: Federation, rounds: int
) -> tuple[list[Row], Evaluation, Trainer]:
    """Train and test both runs, compare their files and values, and return the reference's results and the trainer."""
    rows, evaluation = play(federation, rounds)
    trainer = fit(module, data, rounds=rounds, precision="64-true")
    check_rows(trainer.log_dir, rows)
    for cluster, model in enumerate(federation.models):
        check_values(module.submodel(federation.rules.largest, cluster), model)
    trainer.test(module, datamodule=data, verbose=False)
    check_rows(trainer.log_dir, [*rows[:-1], {**rows[-1], **evaluation.test(rounds - 1)}])
    check_clients(trainer.log_dir, evaluation, rounds - 1)
    return rows, evaluation, trainer


def exit_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(depth):
        stage = f"stages.{number}"
        shapes |= {f"{stage}.layer.weight": (4, 4 if number else 5), f"{stage}.layer.bias": (4,)}
        shapes |= {f"{stage}.head.weight": (3, 4), f"{stage}.head.bias": (3,)}
    return shapes


def mlp_shapes(norm: bool = False) -> dict[str, tuple[int, ...]]:
    names = ("norm.weight", "norm.bias") if norm else ()
    buffers = ("norm.running_mean", "norm.running_var") if norm else ()
    shapes: dict[str, tuple[int, ...]] = {"hidden.weight": (4, 5), "hidden.bias": (4,)}
    shapes |= {**dict.fromkeys(names, (4,)), "classifier.weight": (3, 4), "classifier.bias": (3,)}
    return {**shapes, **dict.fromkeys(buffers, (4,))}


def one_level(**settings: Any) -> Rules:
    """Return the rules of a run in which all clients train the small net."""
    norm = settings.pop("norm", False)
    return Rules(nets={"a": mlp(norm)}, shapes={"a": mlp_shapes(norm)}, **settings)


class Scripted(Selection):
    """Selects the given cohorts, one per round."""

    def __init__(self, *cohorts: Sequence[int]) -> None:
        super().__init__()
        self.cohorts = cohorts

    def setup(self, facts: Facts) -> None:
        self.sizes, self.seed = tuple(facts.sizes), facts.seed

    def select(self, round: int, probe: Probe) -> list[int]:
        assert set(self.cohorts[round]) <= set(probe.clients)
        return list(self.cohorts[round])
