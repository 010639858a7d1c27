"""Error feedback: no entry of a delta is lost for any parts, and no unneeded state is kept."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from hetfl.compression import (
    Compressor,
    ErrorFeedback,
    GammaFedHT,
    HardThreshold,
    Identity,
    Message,
    TopK,
)
from hetfl.layout import Index
from hetfl.store import DiskStore, MemoryStore
from hetfl.updates import Update
from hetfl.wire import Expected, decode

SHAPES: dict[str, tuple[int, ...]] = {"conv": (6, 4, 3), "bias": (6,), "head": (5, 6), "scale": (), "deep": (4,)}
Globals = dict[str, NDArray[np.float64]]


def zeros() -> Globals:
    return {name: np.zeros(shape) for name, shape in SHAPES.items()}


def mesh(index: Index, name: str) -> Any:
    """Return a tensor's entry as NumPy's open mesh of explicit positions."""
    parts = [np.arange(p.start, p.stop) if isinstance(p, slice) else p.numpy() for p in index[name]]
    return np.ix_(*parts) if parts else ()


def gathered(tensors: Globals, index: Index) -> NDArray[np.float64]:
    return np.concatenate([tensors[name][mesh(index, name)].reshape(-1) for name in index])


def scattered(vector: Tensor, index: Index) -> Globals:
    """Return a vector in global coordinates; entries outside the index are 0."""
    whole, at = zeros(), 0
    for name in index:
        shape = whole[name][mesh(index, name)].shape
        size = math.prod(shape)
        whole[name][mesh(index, name)] = vector[at : at + size].double().numpy().reshape(shape)
        at += size
    return whole


def random_index(rng: np.random.Generator) -> Index:
    """Return nested leading blocks of random width and depth, with the classifier rows of random labels."""
    width = int(rng.integers(1, 7))
    labels = np.sort(rng.choice(5, int(rng.integers(0, 6)), replace=False))
    index: dict[str, Any] = {
        "conv": (slice(0, width), slice(0, (width + 1) // 2 + 1), slice(0, 3)),
        "bias": (slice(0, width),),
        "head": (torch.from_numpy(labels), slice(0, width)),
        "scale": (),
    }
    if rng.random() < 0.5:
        index["deep"] = (slice(1, int(rng.integers(1, 5))),)
    return index


def full_index(*names: str) -> Index:
    return {name: tuple(slice(0, size) for size in SHAPES[name]) for name in names or SHAPES}


def size_of(index: Index) -> int:
    return len(gathered(zeros(), index))


def received(message: Message, dtype: torch.dtype) -> Update:
    return decode(message.payload, Expected(message.round, message.client, size_of(message.index), dtype=dtype))


def blocks_of(feedback: ErrorFeedback, client: int) -> Globals:
    """Return the client's residual in global coordinates, from the store."""
    whole = zeros()
    for name, block in feedback.residuals.load(client).items():
        whole[name][tuple(slice(0, size) for size in block.shape)] = block.double().numpy()
    return whole


COMPRESSORS: dict[str, Callable[[], Compressor]] = {
    "Identity": Identity,
    "TopK": lambda: TopK(density=0.1),
    "HardThreshold": lambda: HardThreshold(threshold=9.0),
    "GammaFedHT": lambda: GammaFedHT(density=0.1, alpha=0.5, law="power"),
}
compressors = pytest.mark.parametrize("make", COMPRESSORS.values(), ids=COMPRESSORS.keys())


def run(
    feedback: ErrorFeedback, rounds: int, seed: int, dtype: torch.dtype, integers: bool
) -> list[tuple[Globals, Globals]]:
    """Run random rounds with four clients that idle, change sub-models and are refused; return Σ sent and Σ Δ."""
    rng = np.random.default_rng(seed)
    totals = [(zeros(), zeros()) for _ in range(4)]
    for round in range(rounds):
        for client in range(4):
            if rng.random() < 0.3:
                continue
            index = random_index(rng)
            vector = rng.integers(-9, 10, size_of(index)) if integers else rng.normal(size=size_of(index)) * 3
            delta = torch.from_numpy(vector).to(dtype)
            lr = 0.1 * 0.98**round
            message = feedback.prepare(client, delta, index=index, round=round, lr=lr)
            if rng.random() < 0.2:
                continue
            update = received(message, dtype)
            feedback.accept(message, update)
            for total, moved in zip(totals[client], (update.to_dense(), delta), strict=True):
                for name, part in scattered(moved, index).items():
                    total[name] += part
        feedback.end_round(0)
    return totals


@compressors
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32 - 1))
def test_sent_plus_residual_is_the_sum_of_deltas(make: Callable[[], Compressor], seed: int) -> None:
    """40 rounds with integer deltas, so sums are exact in float64, and so is the equality."""
    feedback = ErrorFeedback(make())
    for client, (sent, deltas) in enumerate(run(feedback, 40, seed, torch.float64, integers=True)):
        residual = blocks_of(feedback, client)
        for name in SHAPES:
            np.testing.assert_array_equal(sent[name] + residual[name], deltas[name])


@compressors
@pytest.mark.parametrize("half_precision", [False, True])
def test_sums_of_float32_deltas_agree_up_to_rounding(make: Callable[[], Compressor], half_precision: bool) -> None:
    feedback = ErrorFeedback(make(), half_precision=half_precision)
    for client, (sent, deltas) in enumerate(run(feedback, 60, 1, torch.float32, integers=False)):
        residual = blocks_of(feedback, client)
        for name in SHAPES:
            np.testing.assert_allclose(sent[name] + residual[name], deltas[name], atol=1e-4)


@compressors
@settings(max_examples=60)
@given(
    numbers=st.lists(st.floats(-6e4, 6e4, width=32), min_size=6, max_size=6),
    others=st.lists(st.floats(-6e4, 6e4, width=32), min_size=6, max_size=6),
    half_precision=st.booleans(),
)
def test_every_step_is_bit_exact(
    make: Callable[[], Compressor], numbers: list[float], others: list[float], half_precision: bool
) -> None:
    feedback = ErrorFeedback(make(), half_precision=half_precision)
    before = np.zeros(6, dtype=np.float32)
    for round, vector in enumerate((numbers, others)):
        delta = np.array(vector, dtype=np.float32) / 2
        message = feedback.prepare(0, torch.from_numpy(delta), index=full_index("bias"), round=round, lr=0.1)
        update = received(message, torch.float32)
        feedback.accept(message, update)
        assert message.residual_D is not None
        np.testing.assert_array_equal(update.to_dense().numpy() + message.residual_D.numpy(), delta + before)
        before = message.residual_D.numpy()


def test_entries_outside_the_index_are_not_touched() -> None:
    feedback = ErrorFeedback(HardThreshold(threshold=100.0))
    everything = full_index()
    delta = torch.arange(1.0, size_of(everything) + 1).remainder(90)
    message = feedback.prepare(0, delta, index=everything, round=0, lr=0.1)
    feedback.accept(message, received(message, torch.float32))
    before = blocks_of(feedback, 0)
    part: Index = {"head": (torch.tensor([1, 3]), slice(0, 2)), "bias": (slice(0, 3),)}
    message = feedback.prepare(0, torch.ones(7), index=part, round=1, lr=0.1)
    feedback.accept(message, received(message, torch.float32))
    want = {name: before[name] + scattered(torch.ones(7), part)[name] for name in SHAPES}
    got = blocks_of(feedback, 0)
    for name in SHAPES:
        np.testing.assert_array_equal(got[name], want[name])


def test_an_unaccepted_message_changes_nothing() -> None:
    feedback = ErrorFeedback(TopK(density=0.1))
    run(feedback, 3, 0, torch.float32, integers=False)
    before = [blocks_of(feedback, client) for client in range(4)]
    norm = feedback.norm()
    delta = torch.ones(size_of(full_index()))
    first = feedback.prepare(1, delta, index=full_index(), round=3, lr=0.1)
    again = feedback.prepare(1, delta, index=full_index(), round=3, lr=0.1)
    assert first.payload == again.payload
    assert torch.equal(delta, torch.ones_like(delta))
    assert feedback.norm() == norm
    for client in range(4):
        for name in SHAPES:
            np.testing.assert_array_equal(blocks_of(feedback, client)[name], before[client][name])


def test_a_residual_takes_the_memory_of_the_held_entries() -> None:
    feedback = ErrorFeedback(HardThreshold(threshold=100.0))
    small: Index = {"conv": (slice(0, 2), slice(0, 1), slice(0, 3)), "head": (torch.tensor([0, 2]), slice(0, 2))}
    message = feedback.prepare(0, torch.ones(10), index=small, round=0, lr=0.1)
    feedback.accept(message, received(message, torch.float32))
    assert {name: tuple(block.shape) for name, block in feedback.residuals.load(0).items()} == {
        "conv": (2, 1, 3),
        "head": (3, 2),
    }


def test_a_zero_residual_takes_no_memory() -> None:
    feedback = ErrorFeedback(Identity())
    run(feedback, 5, 0, torch.float32, integers=False)
    assert feedback.residuals.clients() == []
    assert feedback.norm() == 0.0
    # A residual that becomes zero is dropped.
    feedback = ErrorFeedback(HardThreshold(threshold=2.0))
    for round, kept in enumerate([[0], []]):
        message = feedback.prepare(0, torch.ones(6), index=full_index("bias"), round=round, lr=0.1)
        feedback.accept(message, received(message, torch.float32))
        assert feedback.residuals.clients() == kept
    assert feedback.state_dict()["squared_norms"].tolist() == []


def test_without_error_feedback_no_residual_is_kept() -> None:
    feedback = ErrorFeedback(TopK(density=0.5), enabled=False)
    for round in range(2):
        message = feedback.prepare(0, torch.arange(6.0), index=full_index("bias"), round=round, lr=0.1)
        assert message.residual_D is None
        update = received(message, torch.float32)
        assert update.to_dense().tolist() == [0, 0, 0, 3, 4, 5]
        feedback.accept(message, update)
    assert feedback.residuals.clients() == []
    assert feedback.norm() == 0.0


def test_the_norm_is_over_all_residuals() -> None:
    feedback = ErrorFeedback(TopK(density=0.1))
    run(feedback, 10, 2, torch.float64, integers=False)
    squares = [float((part**2).sum()) for client in range(4) for part in blocks_of(feedback, client).values()]
    assert feedback.norm() == pytest.approx(math.sqrt(sum(squares)), rel=1e-12)


def test_the_compressor_observes_accepted_updates() -> None:
    feedback = ErrorFeedback(HardThreshold(density=0.5))
    refused = feedback.prepare(0, torch.full((6,), 9.0), index=full_index("bias"), round=0, lr=0.1)
    accepted = feedback.prepare(1, torch.arange(6.0), index=full_index("bias"), round=0, lr=0.1)
    feedback.accept(accepted, received(accepted, torch.float32))
    feedback.end_round(0)
    assert feedback.compressor.threshold(0.1) == 3.0
    assert feedback.residuals.load(refused.client) == {}


def test_the_exact_block_is_sent_uncompressed() -> None:
    feedback = ErrorFeedback(TopK(density=0.1), half_precision=True)
    exact = torch.tensor([1 + 2**-20, 3.0])
    message = feedback.prepare(0, torch.ones(6), index=full_index("bias"), round=0, lr=0.1, exact=exact)
    assert torch.equal(decode(message.payload, Expected(0, 0, 6, 2)).exact, exact)


def test_errors_name_the_client_and_the_tensor() -> None:
    feedback = ErrorFeedback(Identity(), half_precision=True)
    with pytest.raises(ValueError, match=r"shape \(10,\) from client 8 but got \(9,\)"):
        feedback.prepare(8, torch.ones(9), index=full_index("bias", "deep"), round=0, lr=0.1)
    delta = torch.ones(10)
    delta[7] = float("nan")
    with pytest.raises(ValueError, match="client 8 but got nan at position 1 of tensor 'deep'"):
        feedback.prepare(8, delta, index=full_index("bias", "deep"), round=0, lr=0.1)
    with pytest.raises(ValueError, match=r"client 8's values to be finite as torch.float16"):
        feedback.prepare(8, 1e6 * torch.ones(6), index=full_index("bias"), round=0, lr=0.1)


def reloaded(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)  # noqa: TID251, as Lightning reads a checkpoint
    return loaded


@pytest.mark.parametrize("on_disk", [False, True])
def test_resuming_is_bit_exact(on_disk: bool, tmp_path: Path) -> None:
    def fresh() -> ErrorFeedback:
        return ErrorFeedback(GammaFedHT(density=0.2), residuals=DiskStore(str(tmp_path)) if on_disk else MemoryStore())

    def payloads(feedback: ErrorFeedback, start: int, stop: int) -> list[bytes]:
        messages = []
        for round in range(start, stop):
            rng = np.random.default_rng(round)
            for client in range(3):
                index = random_index(rng)
                delta = torch.from_numpy(rng.normal(size=size_of(index))).float()
                message = feedback.prepare(client, delta, index=index, round=round, lr=0.1 / (1 + round))
                feedback.accept(message, received(message, torch.float32))
                messages.append(message.payload)
            feedback.end_round(0)
        return messages

    first = fresh()
    payloads(first, 0, 4)
    state = reloaded(first.state_dict())
    want, norm = payloads(first, 4, 8), first.norm()
    resumed = fresh()
    resumed.load_state_dict(state)
    assert payloads(resumed, 4, 8) == want
    assert resumed.norm() == norm


def test_disk_store_equals_memory_store(tmp_path: Path) -> None:
    stores = (MemoryStore(), DiskStore(str(tmp_path)))
    feedbacks = [ErrorFeedback(TopK(density=0.1), residuals=store) for store in stores]
    for feedback in feedbacks:
        run(feedback, 20, 3, torch.float32, integers=False)
    memory, disk = stores
    assert memory.clients() == disk.clients() == [0, 1, 2, 3]
    for client in memory.clients():
        want, got = memory.load(client), disk.load(client)
        assert want.keys() == got.keys()
        for name in want:
            assert torch.equal(want[name].view(torch.int32), got[name].view(torch.int32))
    assert feedbacks[0].norm() == feedbacks[1].norm()
    for store in stores:
        store.save(2, {}, 20)
        assert store.load(2) == {}
        assert store.clients() == [0, 1, 3]
