"""Server rules for low-rank factors against NumPy, on layers of known products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetfl import analysis
from hetfl.aggregators import Aggregator, HolderMean, ProductMean, SampleMean, ZeroPadMean
from hetfl.aggregators.stacked_products import StackedProducts, Target
from hetfl.errors import ConfigurationError
from hetfl.part import Part
from hetfl.parts import AlternatingFactors
from hetfl.piece import Facts
from hetfl.submodel import take
from hetfl.types import Report
from hetfl.updates import DenseUpdate

Array = NDArray[np.float64]
A, B = "layer.lora_A", "layer.lora_B"
R, OUT, IN = 3, 5, 4


def oracle() -> dict[str, Tensor]:
    """Return the factors of oracle C-LoRA: two ranks, each with a product of norm 1."""
    return {A: torch.eye(2, 3).double(), B: torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).double()}


def drawn(seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = {A: (R, IN), B: (OUT, R), "head.weight": (2, 2)}
    return {name: torch.randn(shape, generator=random, dtype=torch.float64) for name, shape in shapes.items()}


def leading(tensors: dict[str, Tensor], rank: int, names: Sequence[str] = (A, B, "head.weight")) -> Part:
    index = {name: tuple(slice(0, size) for size in tensors[name].shape) for name in names if name in tensors}
    if A in index:
        index[A] = (slice(0, rank), index[A][1])
    if B in index:
        index[B] = (index[B][0], slice(0, rank))
    return Part(index)


def played(
    rule: Aggregator, tensors: dict[str, Tensor], clients: Sequence[tuple[Part, Tensor, int]]
) -> dict[str, Tensor]:
    """Return the tensors after a round of clients with parts, deltas and numbers of samples."""
    rule.setup(Facts(parameters=tensors))
    rule.reset(tensors)
    for number, (part, delta_D, samples) in enumerate(clients):
        rule.update(DenseUpdate(delta_D), part, Report(number, "a", samples, 0.0))
    steps, holders = rule.compute()
    assert all(not steps[name][holders[name] == 0].any() for name in tensors)
    return {name: tensor + steps[name] for name, tensor in tensors.items()}


def idle(tensors: dict[str, Tensor], ranks: Sequence[int]) -> list[tuple[Part, Tensor, int]]:
    parts = [leading(tensors, rank) for rank in ranks]
    return [(part, torch.zeros(part.size, dtype=torch.float64), 1) for part in parts]


def singular(tensors: dict[str, Tensor], rank: int) -> Array:
    return np.linalg.svd((tensors[B] @ tensors[A]).numpy())[1][:rank]


def test_an_idle_round_shrinks_products_of_other_rules_alone() -> None:
    """Oracle C-LoRA: ranks 1, 2, 2 leave (1, 4/9) by zero-padding, (1, 2/3) by the mean of products, else (1, 1)."""
    tensors, ranks = oracle(), (1, 2, 2)
    expected = [(ZeroPadMean(), (1, 4 / 9)), (ProductMean("product"), (1, 2 / 3))]
    for rule, values in expected:
        assert np.allclose(singular(played(rule, tensors, idle(tensors, ranks)), 2), values, atol=1e-12)
    for kept in (HolderMean(), SampleMean(), ProductMean()):
        after = played(kept, tensors, idle(tensors, ranks))
        assert all(torch.equal(after[name], tensor) for name, tensor in tensors.items())


def test_rank_collapse_by_rounds() -> None:
    """Of four clients one holds the second rank: its product falls by 1/16 a round, and is below 1e-6 after five."""
    curve, tensors = [], oracle()
    for _ in range(5):
        tensors = played(ZeroPadMean(), tensors, idle(tensors, (1, 1, 1, 2)))
        curve.append(singular(tensors, 2)[1])
    assert np.allclose(curve, 1 / 16.0 ** np.arange(1, 6), rtol=1e-9)
    assert curve[-1] < 1e-6


def test_an_idle_tail_that_is_uploaded_scaled_would_shrink() -> None:
    """Oracle C-ATW: by a warm-up 1 - exp(-t/2) of a frozen tail, .153 is left of it after five rounds."""
    tensors, scaled = oracle(), oracle()
    for t in range(1, 6):
        warm = 1 - np.exp(-t / 2)
        part = leading(scaled, 2)
        delta = {name: torch.zeros_like(tensor) for name, tensor in scaled.items()}
        for name, row in ((A, (slice(1, 2),)), (B, (slice(None), slice(1, 2)))):
            delta[name][row] = (np.sqrt(warm) - 1) * scaled[name][row]
        delta_D = torch.cat([delta[name].flatten() for name in part])
        scaled = played(SampleMean(), scaled, [(part, delta_D, 1)])
        sent = leading(tensors, 1)  # what hetfl.parts.TrainedRanks sends: the tail is not in it
        tensors = played(SampleMean(), tensors, [(sent, torch.zeros(sent.size).double(), 1)])
    assert singular(scaled, 2)[1] == pytest.approx(0.153359, abs=1e-6)
    assert singular(tensors, 2)[1] == 1.0


def cohort(tensors: dict[str, Tensor]) -> list[tuple[Part, Tensor, int]]:
    clients = []
    for seed, (rank, samples) in enumerate(((3, 2), (1, 5), (2, 4), (1, 1))):
        part = leading(tensors, rank)
        delta_D = torch.randn(part.size, generator=torch.Generator().manual_seed(9 + seed), dtype=torch.float64)
        clients.append((part, delta_D, samples))
    return clients


def by_client(tensors: dict[str, Tensor], part: Part, delta_D: Tensor) -> tuple[Array, Array, Array, Array, Array]:
    views = {name: view.numpy() for name, view in part.layout.views(delta_D).items()}
    rank = len(views[A])
    a0, b0 = tensors[A].numpy()[:rank], tensors[B].numpy()[:, :rank]
    return a0, b0, a0 + views[A], b0 + views[B], views["head.weight"]


@pytest.mark.parametrize("form", ["change", "product"])
def test_products_are_averaged_in_product_space(form: str) -> None:
    tensors = drawn(0)
    clients = cohort(tensors)
    after = played(ProductMean(form), tensors, clients)  # type: ignore[arg-type]
    total = sum(samples for *_, samples in clients)
    whole = (tensors[B] @ tensors[A]).numpy() if form == "change" else np.zeros((OUT, IN))
    head = tensors["head.weight"].numpy().copy()
    for part, delta_D, samples in clients:
        a0, b0, a, b, change = by_client(tensors, part, delta_D)
        whole += samples / total * (b @ a - (b0 @ a0 if form == "change" else 0.0))
        head += samples / total * change
    u, s, vt = np.linalg.svd(whole, full_matrices=False)
    assert np.allclose((after[B] @ after[A]).numpy(), u[:, :R] * s[:R] @ vt[:R], atol=1e-10)
    for rank in range(1, R + 1):
        assert np.allclose(
            (after[B][:, :rank] @ after[A][:rank]).numpy(), u[:, :rank] * s[:rank] @ vt[:rank], atol=1e-10
        )
    assert np.allclose(after["head.weight"].numpy(), head)


def narrow(tensors: dict[str, Tensor], rank: int, inputs: int, outputs: int) -> Part:
    whole = {name: entry for name, entry in leading(tensors, R).items() if name not in (A, B)}
    entry = slice(0, rank)
    return Part({A: (entry, slice(0, inputs)), B: (slice(0, outputs), entry), **whole})


@pytest.mark.parametrize("stacked", [False, True])
def test_products_of_narrow_clients_are_zero_outside_of_their_block(stacked: bool) -> None:
    tensors = drawn(0)
    rule: Aggregator = ProductMean("product")
    if stacked:
        tensors["layer.weight"] = torch.zeros(OUT, IN, dtype=torch.float64)
        rule = stacking()
    parts = [(narrow(tensors, 2, 3, 4), 3), (narrow(tensors, 1, IN, OUT), 1)]
    clients, expected = [], np.zeros((OUT, IN))
    for seed, (part, samples) in enumerate(parts):
        delta_D = torch.randn(part.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        views = part.layout.views(delta_D)
        a, b = (take(tensors[name], part[name]) + views[name] for name in (A, B))
        expected[: b.shape[0], : a.shape[1]] += samples / 4 * (b @ a).numpy()
        clients.append((part, delta_D, samples))
    after = played(rule, tensors, clients)
    got = after["layer.weight"] / 2.0 if stacked else after[B] @ after[A]
    assert np.allclose(got.numpy(), expected, atol=1e-12)
    if isinstance(rule, StackedProducts):
        rule.end_round(0)
        assert rule.shared_bytes(0) == 4 * min(2 * (3 + 4) + (IN + OUT), OUT * IN)


def test_factors_of_both_kinds_alternate_in_every_copy() -> None:
    part = Part({f"layer.{leaf}{of}": (slice(0, 2),) for leaf in ("lora_A", "lora_B") for of in ("", "@b")})
    sent = [list(AlternatingFactors().sent(part, "b", round, 0)) for round in (0, 1)]
    assert sent == [["layer.lora_B", "layer.lora_B@b"], ["layer.lora_A", "layer.lora_A@b"]]


def test_factors_do_not_alternate_if_one_is_frozen() -> None:
    with pytest.raises(ConfigurationError, match=f"trained factors A for AlternatingFactors but got a frozen '{A}'"):
        AlternatingFactors().setup(Facts(frozen={A: torch.zeros(1)}))


def test_frozen_a_makes_the_mean_of_b_that_of_the_products() -> None:
    tensors = drawn(1)
    parts = [leading(tensors, rank, (B, "head.weight")) for rank in (3, 3, 3)]
    clients = [(part, torch.randn(part.size).double(), 1 + number) for number, part in enumerate(parts)]
    after = played(SampleMean(), tensors, clients)
    products = [
        (tensors[B] + part.layout.views(delta_D)[B]) @ tensors[A] * samples / 6 for part, delta_D, samples in clients
    ]
    assert torch.allclose(after[B] @ tensors[A], torch.stack(products).sum(0), atol=1e-13)
    both = cohort(tensors)[:1] * 2
    twice = played(SampleMean(), tensors, [(both[0][0], both[0][1], 1), (both[0][0], -both[0][1], 1)])
    d = both[0][0].layout.views(both[0][1])
    mean = torch.stack([(tensors[B] + s * d[B]) @ (tensors[A] + s * d[A]) for s in (1, -1)]).sum(0)
    assert not torch.allclose(twice[B] @ twice[A], mean / 2, atol=1e-3)  # cross terms with both trained


@pytest.mark.parametrize("weights", ["samples", "products"])
def test_zero_padded_mean(weights: str) -> None:
    """HetLoRA weighs by the norm of the products."""
    tensors = drawn(2)
    clients, summed, total = cohort(tensors), {A: np.zeros((R, IN)), B: np.zeros((OUT, R))}, 0.0
    for part, delta_D, samples in clients:
        _, _, a, b, _ = by_client(tensors, part, delta_D)
        weight = float(samples) if weights == "samples" else float(np.linalg.norm(b @ a))
        summed[A][: len(a)] += weight * a
        summed[B][:, : len(a)] += weight * b
        total += weight
    after = played(ZeroPadMean(weights), tensors, clients)  # type: ignore[arg-type]
    for name, each in summed.items():
        assert np.allclose(after[name].numpy(), each / total, atol=1e-12)


def test_what_product_mean_cannot_take_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="without residuals and memories for ProductMean, .* enabled: false"):
        ProductMean().setup(Facts(remembers="residuals and memories"))
    for rule in (lambda: ProductMean("sum"), lambda: ZeroPadMean("sum")):  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="got 'sum'"):
            rule()


def stacking() -> StackedProducts:
    return StackedProducts({"layer": Target("layer.weight", 2.0)})


def test_rules_for_products_refuse_frozen_a() -> None:
    for name, rule in (("ProductMean", ProductMean()), ("FLoRA", stacking())):
        with pytest.raises(ConfigurationError, match=f"trained factors A for {name} but got a frozen '{A}'"):
            rule.setup(Facts(frozen={A: torch.zeros(1)}))


@pytest.mark.parametrize("alone", [A, B])
def test_stacking_refuses_an_update_of_one_factor(alone: str) -> None:
    tensors = {**drawn(0), "layer.weight": torch.zeros(OUT, IN, dtype=torch.float64)}
    part = leading(tensors, 2, (alone, "head.weight"))
    with pytest.raises(ConfigurationError, match=f"both factors of a layer for FLoRA but got '{alone}' alone"):
        played(stacking(), tensors, [(part, torch.ones(part.size, dtype=torch.float64), 1)])


def test_product_mean_refuses_one_factor_of_a_narrow_client() -> None:
    """The width of the other factor is not known to the server."""
    tensors = drawn(0)
    for entry in ({A: (slice(0, 2), slice(0, 3))}, {B: (slice(0, 4), slice(0, 2))}):
        part = Part(entry)
        with pytest.raises(ConfigurationError, match="both factors .* ProductMean but got 'layer.lora_[AB]' alone"):
            played(ProductMean(), tensors, [(part, torch.ones(part.size, dtype=torch.float64), 1)])


def test_singular_values_are_those_of_the_products() -> None:
    table = analysis.singular_values(drawn(3))
    expected = np.linalg.svd((drawn(3)[B] @ drawn(3)[A]).numpy())[1][:R]
    assert table.loc["layer"].to_numpy() == pytest.approx(expected)
    assert [int(rank) for rank in table.columns] == [1, 2, 3]
    with pytest.raises(ConfigurationError, match="Expected low-rank factors"):
        analysis.singular_values({"head.weight": torch.zeros(2, 2)})
