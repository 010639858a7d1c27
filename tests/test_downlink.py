"""What clients are sent in codes: unbiased, by the book, the same for all who hold a part, and what it is used for."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Trainer
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hetfl import FederatedModule, Level
from hetfl.cli import FederatedTrainer
from hetfl.clustering import IFCA
from hetfl.compression import DynamicRange, ErrorFeedback, FixedPoint, LogQuantizer, StochasticQuantizer, TopK
from hetfl.downlink import Downlink
from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.local import Executor, FedDyn, LocalTraining, Sequential, Stacked, Workers
from hetfl.local.jobs import losses, train
from hetfl.parts import RandomMask, Rolling
from hetfl.rotation import Rotation
from hetfl.selection import PowerOfChoice
from hetfl.session.callbacks import LastCheckpoint
from hetfl.types import SHARED, Task
from hetfl.wire import Expected, decode_submodel
from tests.conftest import small_data, small_levels, small_module

Fit = Callable[..., Trainer]
LAYOUT = Layout({"w": (20, 9), "v": (15, 5)})


def four_bits(**changes: Any) -> Downlink:
    return Downlink(DynamicRange(4, 64, stochastic=True), **changes)


def finer() -> Downlink:
    return four_bits(statistics=DynamicRange(8, 64, stochastic=True))


def rows(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(str(trainer.log_dir)) / "metrics.csv")


def opened(module: FederatedModule) -> FederatedModule:
    """A module that has met its data, with its nets in this process."""
    FederatedTrainer(accelerator="cpu", logger=False, enable_progress_bar=False).introduce(module, small_data())
    module.hosting.open(module.data)
    return module


@pytest.mark.parametrize(
    "downlink",
    [
        four_bits(),
        four_bits(rotate=True, block=64),
        Downlink(StochasticQuantizer(4, 64)),
        Downlink(DynamicRange(2, None, stochastic=True), rotate=True),
    ],
    ids=["affine", "rotated", "symmetric", "two bits a tensor"],
)
def test_the_mean_of_what_is_read_is_the_value(downlink: Downlink) -> None:
    draws, values_D = 80, torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(0))
    expected = Expected(0, 0, LAYOUT.size, layout=LAYOUT)
    read = torch.stack(
        [
            decode_submodel(
                downlink.encode(values_D, LAYOUT, torch.empty(0), round=0, model=0, seed=seed), expected
            ).values_D
            for seed in range(draws)
        ]
    ).double()
    step = float((read.amax(0) - read.amin(0)).max())
    # The error bar of the mean, and a single step, as entries close to a code are rounded to the next one hardly ever.
    error = (read.mean(0) - values_D) / (read.var(0) / draws + (step / draws) ** 2).sqrt()
    assert float(read.std(0).max()) > 0.01
    # Of 255 normal errors the largest is beyond 4.5 once in 500 tries, their mean beyond 0.25 once in 10^4; one seed.
    assert float(error.abs().max()) < 4.5
    assert abs(float(error.mean())) < 0.25


def read_by_hand(message: bytes, sizes: list[int], exact: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """What a sub-model's bytes mean, in loops over numbers and with a matrix for the rotation."""
    log, seed = message[0], struct.unpack_from("<Q", message, 4)[0]
    body = message[12 + 56 :]
    bits, own, _, bucket = struct.unpack_from("<BBHI", body)
    count = sum(sizes)
    buckets = -(-count // bucket)
    zeros = struct.unpack_from(f"<{buckets if own else 1}f", body, 8)
    scales = struct.unpack_from(f"<{buckets}f", body, 8 + 4 * len(zeros))
    start = 8 + 4 * (len(zeros) + buckets)
    stream = int.from_bytes(body[start : start + (count * bits + 7) // 8], "little")
    codes = [stream >> i * bits & 2**bits - 1 for i in range(count)]
    values = [(q - zeros[i // bucket if own else 0]) * scales[i // bucket] for i, q in enumerate(codes)]
    found = np.array(values, dtype=np.float64)
    if log:
        identity = torch.eye(count, dtype=torch.float64)
        inverse = torch.stack([Rotation(log, seed).turned(row, sizes) for row in identity])  # R transposed
        found = inverse.numpy() @ found
    tail = np.frombuffer(body[start + (count * bits + 7) // 8 :], dtype="<f4")
    assert len(tail) == exact
    return found, tail


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_client_begins_at_what_its_message_says(fit: Fit, rotate: bool, masked: bool) -> None:
    levels = {"a": Level("a"), "b": Level("b", 0.5, density=0.5)} if masked else small_levels(1.0, 0.5)
    parts = RandomMask() if masked else Rolling()
    downlink = four_bits(rotate=rotate, block=64)
    module = opened(small_module(levels=levels, parts=parts, downlink=downlink))
    task = module.task_parts.drawn(Task(3, "b", 1, module.models.mark))
    given = module.downlink.given(task)
    assert given.received is not None
    message = module.downlink.sent(task, task.part).messages[0]
    coded = [name for name, entry in task.part.items() if len(entry) > 1]
    rest = [name for name in task.part if name not in coded]
    count = dict(zip(task.part, task.part.held.sizes, strict=True))
    by_hand, exact = read_by_hand(message, [count[name] for name in coded], sum(count[name] for name in rest))
    read = dict(zip(coded, np.split(by_hand, np.cumsum([count[name] for name in coded])[:-1]), strict=True))
    read |= dict(zip(rest, np.split(exact, np.cumsum([count[name] for name in rest])[:-1]), strict=True))
    views = task.part.layout.views(given.received.values_D)
    masks = task.part.layout.views(torch.ones_like(given.received.values_D).bool())
    if task.part.mask_D is not None:
        masks = task.part.layout.views(task.part.mask_D)
        assert masked
    for name, view in views.items():
        assert np.allclose(view[masks[name]].numpy(), read[name].astype(np.float32), rtol=1e-6, atol=1e-7), name
        assert not bool(view[~masks[name]].any())
    resident = module.hosting.bench.resident(given)  # type: ignore[union-attr]
    assert torch.equal(resident.anchor_D, given.received.values_D)
    exactly = module.hosting.bench.resident(task)  # type: ignore[union-attr]
    assert not torch.equal(exactly.anchor_D, given.received.values_D)


def test_deltas_losses_and_statistics_are_of_what_was_received(fit: Fit) -> None:
    module = opened(small_module(downlink=four_bits()))
    bench = module.hosting.bench
    assert bench is not None
    task = module.downlink.given(module.task_parts.drawn(Task(3, "b", 1, module.models.mark, lr=0.0)))
    assert task.received is not None
    # Steps of length 0 end where they began: at what was received, not at the global model.
    assert not bool(train(bench, task).vector.any())
    net = module.levels.build("b")
    tensors = dict(net.named_parameters())
    for name, view in task.part.layout.views(task.received.values_D).items():
        tensors[name].data = view.clone()
    data = module.data
    client = data.client_data(3)
    outputs = net.train()(data.transform.eval(client.inputs)).detach()
    own = module.restrict(outputs, data.labels(3).expand(len(outputs), -1))
    expected = float(F.cross_entropy(own, client.targets))
    assert losses(bench, task, None).report.loss == pytest.approx(expected, rel=1e-5)


def test_statistics_are_gathered_with_values_of_their_own() -> None:
    module = opened(small_module(downlink=finer()))
    task = module.task_parts.drawn(Task(3, "a", 0, module.models.mark))
    trains, gathers = (module.downlink.given(replace(task, statistics=each)) for each in (False, True))
    assert trains.received is not None
    assert gathers.received is not None
    bench = module.hosting.bench
    assert bench is not None
    exact_D = bench.resident(task).anchor_D.clone()
    # One net after the other reads the same part of the same version in other codes: a step of 8 bits is a 17th.
    errors = [float((bench.resident(given).anchor_D - exact_D).abs().max()) for given in (trains, gathers, trains)]
    assert errors[0] == errors[2] > 10 * errors[1] > 0
    sizes = [len(module.downlink.sent(given, given.part).messages[0]) for given in (trains, gathers)]
    coded = sum(entry.numel() for entry in task.part.layout.views(exact_D).values() if entry.dim() > 1)
    assert sizes[1] - sizes[0] == (8 * coded + 7) // 8 - (4 * coded + 7) // 8


def test_a_client_reads_a_smaller_level_in_a_larger_one_that_it_has(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    module = small_module(downlink=finer(), statistics_clients=None)
    asked: list[Task] = []
    run = type(module.clients).run

    def seen(clients: Any, job: Any, tasks: Any) -> Any:
        asked.extend(tasks)
        return run(clients, job, tasks)

    monkeypatch.setattr(type(module.clients), "run", seen)
    fit(module, rounds=1)
    sources = [task for task in asked if task.source]
    assert sources
    assert any(not task.source for task in asked)
    broadcast, costs = module.downlink, 0
    for task in asked:
        given = broadcast.given(task)
        assert given.received is not None
        if not task.source:
            costs += sum(map(len, broadcast.sent(task, task.part).messages.values()))
            continue
        larger = task.source.layout.views(broadcast.sent(task, task.source).values_D)
        for name, view in task.part.layout.views(given.received.values_D).items():
            assert torch.equal(view, larger[name][tuple(slice(size) for size in view.shape)]), name
    assert module.ledger.round.down_statistics_bytes == costs


def test_bytes_are_those_of_the_messages(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    module = small_module(downlink=four_bits(), personal=["classifier.bias"])
    trained: list[Task] = []
    own = type(module.clients).train

    def seen(clients: Any, tasks: Any) -> Any:
        trained.extend(tasks)
        return own(clients, tasks)

    monkeypatch.setattr(type(module.clients), "train", seen)
    trainer = fit(module, rounds=2, limit_val_batches=0)
    total = 0
    for task in trained:
        part = task.part
        coded = sum(size for size, entry in zip(part.layout.sizes, part.values(), strict=True) if len(entry) > 1)
        exact = part.layout.size - coded - 10  # the bias stays with its client
        buckets = -(-coded // 64)
        total += 12 + 56 + 8 + 8 * buckets + (4 * coded + 7) // 8 + 4 * exact
    found = rows(trainer)
    assert found["comm/down_training_bytes"].sum() == total
    by_level = {task.level: module.forecast.down_bytes()[task.level] for task in trained}
    assert sum(by_level[task.level] for task in trained) == total
    levels = pd.read_csv(Path(str(trainer.log_dir)) / "levels.csv").set_index("level")["down_bytes"]
    assert levels.to_dict() == module.forecast.down_bytes()


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "levels and statistics": lambda: {"downlink": finer(), "uplink": ErrorFeedback(TopK(0.2))},
    "rotated rolling windows": lambda: {"downlink": four_bits(rotate=True), "parts": Rolling()},
    "masks, memories, losses": lambda: {
        "downlink": Downlink(FixedPoint(8, 5, stochastic=True), exact=["classifier*", "*bias"]),
        "parts": RandomMask(),
        "levels": {"a": Level("a"), "b": Level("b", 0.5, density=0.5)},
        "local": LocalTraining(1, 10, penalty=FedDyn(0.1)),
        "selection": PowerOfChoice(6, 3),
    },
    "clusters that share": lambda: {"downlink": four_bits(), "clustering": IFCA(2, shared=["blocks.*"])},
}


TWICE = ("levels and statistics", "rotated rolling windows", "clusters that share")
"""Cases that other tests have by default."""


def checkpoints() -> dict[str, Any]:
    return {"callbacks": [LastCheckpoint(1.0)], "enable_checkpointing": True}


def state(module: FederatedModule) -> dict[str, Tensor]:
    return dict(module.state_dict())


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case in TWICE else []) for case in CASES]
)
def test_processes_give_the_bits_of_one(fit: Fit, case: str) -> None:
    alone, several = small_module(**CASES[case]()), small_module(executor=Workers(2), **CASES[case]())
    once = {"rounds": 2, "check_val_every_n_epoch": 2}
    one, two = rows(fit(alone, name="one", **once)), rows(fit(several, name="two", **once))
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert all(torch.equal(value, state(several)[name]) for name, value in state(alone).items())


@pytest.mark.parametrize(
    "case", ["rotated rolling windows", pytest.param("clusters that share", marks=pytest.mark.slow)]
)
def test_a_run_that_is_resumed_ends_with_the_same_bits(fit: Fit, tmp_path: Path, case: str) -> None:
    whole, first, rest = (small_module(**CASES[case]()) for _ in range(3))
    once = {"check_val_every_n_epoch": 2}
    expected = rows(fit(whole, name="whole", rounds=2, **once))
    fit(first, name="parts", rounds=1, **once, **checkpoints())
    (path,) = tmp_path.glob("parts/*/checkpoints/last.ckpt")
    found = rows(fit(rest, name="rest", rounds=2, ckpt=str(path), **once, **checkpoints()))
    assert all(torch.equal(value, state(rest)[name]) for name, value in state(whole).items())
    last = ["comm/down_bytes_total", "val/accuracy", "val/loss"]
    assert found.iloc[-1][last].to_dict() == expected.iloc[-1][last].to_dict()


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(
    "executor", [pytest.param(lambda: Stacked(3), marks=pytest.mark.slow), lambda: Workers(2, Stacked(3))]
)
def test_stacked_clients_begin_at_the_same_values(fit: Fit, executor: Callable[[], Executor]) -> None:
    plain, stacked = (
        small_module(downlink=four_bits(), parts=Rolling(), executor=make()) for make in (Sequential, executor)
    )
    for module in (plain, stacked):
        fit(module, rounds=1, precision="64-true", limit_val_batches=0)
    for name, value in state(plain).items():
        assert torch.allclose(value, state(stacked)[name], rtol=0, atol=1e-9), name


def test_all_models_share_what_is_read_of_shared_tensors(fit: Fit) -> None:
    module = opened(small_module(**CASES["clusters that share"]()))
    broadcast = module.downlink
    tasks = [module.task_parts.drawn(Task(0, "b", 1, module.models.mark, model=model)) for model in (0, 1)]
    one, two = (broadcast.sent(task, task.part) for task in tasks)
    assert one.messages[SHARED] == two.messages[SHARED]
    views = [tasks[0].part.layout.views(sent.values_D) for sent in (one, two)]
    for name, view in views[0].items():
        if name in module.models.shared or name.endswith("weight"):
            assert torch.equal(view, views[1][name]) == (name in module.models.shared), name
    # A client that tries a second model is sent what is not shared alone.
    less = module.downloads.bytes(tasks[1], module.models.shared)
    assert less == len(two.messages[1])
    assert module.downloads.bytes(tasks[1]) == less + len(two.messages[SHARED])


def test_an_evaluation_and_the_next_round_send_the_same_values(fit: Fit) -> None:
    module = opened(small_module(downlink=four_bits()))
    task = module.task_parts.drawn(Task(0, "b", 0, module.models.mark))
    first = module.downlink.sent(task, task.part).values_D
    later = replace(task, round=1)
    assert torch.equal(first, module.downlink.sent(later, task.part).values_D)
    module.models.version += 1
    assert not torch.equal(first, module.downlink.sent(task, task.part).values_D)


def test_float32_is_what_it_was(fit: Fit) -> None:
    module = opened(small_module())
    task = module.task_parts.drawn(Task(0, "b", 1, module.models.mark))
    assert module.downlink.given(task) is task
    assert module.downloads.bytes(task) == 56 + 4 * task.part.size


def test_a_run_goes_on_with_its_downlink_alone(fit: Fit, tmp_path: Path) -> None:
    fit(small_module(downlink=four_bits()), name="coded", rounds=1, limit_val_batches=0, **checkpoints())
    (path,) = tmp_path.glob("coded/*/checkpoints/last.ckpt")
    with pytest.raises(ConfigurationError, match=r"checkpoint's downlink .*bits=4.*float32") as error:
        fit(small_module(), rounds=2, ckpt=str(path), **checkpoints())
    assert "\n" not in str(error.value)


def test_a_model_that_is_not_finite_is_not_sent(fit: Fit) -> None:
    module = opened(small_module(downlink=four_bits()))
    task = module.task_parts.drawn(Task(0, "b", 1, module.models.mark))
    with torch.no_grad():
        next(module.net.parameters()).fill_(math.nan)
    with pytest.raises(ConfigurationError, match="finite global model to send in round 2"):
        module.downlink.given(task)


@pytest.mark.parametrize("block", [0, 1, 48, 2**31])
def test_blocks_that_are_no_power_of_two_are_refused(block: int) -> None:
    with pytest.raises(ConfigurationError, match=f"power of two from 2 to 2\\^30 for Downlink but got {block}"):
        Downlink(block=block)


@pytest.mark.parametrize("setting", ["quantiser", "statistics"])
def test_codes_that_cannot_express_values_near_0_are_refused(setting: str) -> None:
    with pytest.raises(ConfigurationError, match="Expected LogQuantizer with a span for Downlink but got it without"):
        Downlink(**{setting: LogQuantizer()})  # type: ignore[arg-type]
    Downlink(**{setting: LogQuantizer(span=100.0)})  # type: ignore[arg-type]
