"""FedNova against its published value, per entry over holders, and NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hetfl.aggregators import FedNova, SampleMean
from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.part import Part
from hetfl.testing import check_aggregator
from hetfl.types import Report
from hetfl.updates import DenseUpdate


def step_of(
    mean: FedNova | SampleMean,
    updates: Sequence[Sequence[float]],
    held: Sequence[Sequence[int]],
    steps: Sequence[int],
    samples: Sequence[int],
    size: int,
) -> dict[str, Tensor]:
    """Return the step of a vector and of a buffer of one entry, whose update is 1."""
    mean.reset({"w": torch.zeros(size, dtype=torch.float64), "buffer": torch.zeros(1, dtype=torch.float64)})
    for client, entries in enumerate(held):
        part = Part({"w": (torch.tensor(entries, dtype=torch.int64),), "buffer": (slice(0, 1),)})
        values = torch.tensor(updates[client], dtype=torch.float64)
        update = DenseUpdate(values, exact=torch.ones(1, dtype=torch.float64))
        mean.update(update, part, Report(client, "a", samples[client], 0.5, steps=steps[client]))
    return mean.compute()[0]


def test_the_published_examples_of_whole_and_partial_models() -> None:
    updates, steps = [[0.2, 0.2], [1.6]], [2, 8]
    step = step_of(FedNova(), updates, [[0, 1], [0]], steps, [1, 1], 2)
    assert step["w"].tolist() == pytest.approx([0.75, 0.2])
    assert step["buffer"].tolist() == pytest.approx([1.0])
    assert step_of(SampleMean(), updates, [[0, 1], [0]], steps, [1, 1], 2)["w"][0] == pytest.approx(0.9)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 0.9]))
def test_entries_equal_numpy(seed: int, momentum: float) -> None:
    random = np.random.default_rng(seed)
    held = [sorted(random.choice(5, random.integers(1, 6), replace=False).tolist()) for _ in range(4)]
    updates = [random.normal(size=len(entries)).tolist() for entries in held]
    steps, samples = random.integers(1, 9, 4).tolist(), random.integers(1, 9, 4).tolist()
    # The effective steps are the sum over the steps of the weights of each step's gradient in the final momentum.
    effective = [sum((1 - momentum ** (tau - i)) / (1 - momentum) for i in range(tau)) for tau in steps]
    step = step_of(FedNova(momentum), updates, held, steps, samples, 5)["w"]
    for j in range(5):
        holders = [k for k in range(4) if j in held[k]]
        share = {k: samples[k] / sum(samples[i] for i in holders) for k in holders}
        mean = sum(share[k] * updates[k][held[k].index(j)] / effective[k] for k in holders)
        assert float(step[j]) == pytest.approx(sum(share[k] * effective[k] for k in holders) * mean, abs=1e-12)


@given(st.integers(1, 12), st.floats(0.001, 0.9), st.floats(0.001, 2.0))
def test_effective_steps_of_the_proximal_form_equal_a_loop(steps: int, lr: float, mu: float) -> None:
    """With constant gradients g, the proximal steps move a client by -γ a g."""
    moved = 0.0
    for _ in range(steps):
        moved -= lr * (1.0 + mu * moved)
    assert FedNova(proximal_mu=mu).effective(steps, lr) == pytest.approx(-moved / lr, rel=1e-9)


def test_equal_steps_give_the_mean_over_samples() -> None:
    updates, held = [[1.0, 2.0], [3.0, -1.0]], [[0, 1], [0, 1]]
    plain, nova = (step_of(mean, updates, held, [3, 3], [2, 5], 2)["w"] for mean in (SampleMean(), FedNova(0.9)))
    assert nova.tolist() == pytest.approx(plain.tolist())


def test_the_contract_and_wrong_settings() -> None:
    check_aggregator(FedNova)
    with pytest.raises(ConfigurationError, match=r"momentum in \[0, 1\) for FedNova but got 1.0"):
        FedNova(1.0)
    for wrong in ({"proximal_mu": -0.1}, {"momentum": 0.5, "proximal_mu": 0.1}):
        with pytest.raises(ConfigurationError, match="only one of momentum and proximal_mu above 0, for FedNova but"):
            FedNova(**wrong)
    with pytest.raises(RefusedUpdate, match="at least one local step for FedNova but got 0"):
        step_of(FedNova(), [[1.0]], [[0]], [0], [1], 1)
