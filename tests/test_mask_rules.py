"""Part rules that choose masks by the weights, against NumPy: whole runs, values and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import cos, floor, pi
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hetfl.errors import ConfigurationError
from hetfl.levels.level_set import LevelSet
from hetfl.part import Part
from hetfl.parts import (
    ClientImportance,
    DynamicMask,
    GreedyMask,
    HuntedMask,
    PersonalMask,
    RankedMask,
    RewoundMask,
    VotedMask,
)
from hetfl.parts.growth import ByClients, Exchange, OwnMasks, Posterior
from hetfl.parts.mask_rule import MaskRule, weights_of
from hetfl.piece import Facts
from hetfl.pruning.criteria import Criterion, GradientPerTime, Magnitude, Movement, RandomScore, SquaredTaylor
from hetfl.pruning.gradients import ClientGradient, GradientRequest, MaskRequest
from hetfl.pruning.schedules import Cubic
from hetfl.types import Level, Report, Task
from hetfl.updates import DenseUpdate, SparseUpdate
from tests.mask_cases import DENSITY, all_together, check, per_layer, sizes
from tests.reference.cases import Fit
from tests.sparse_cases import WEIGHTS, Clients, Tensors, gradient, holder_mean, masked, top

pytestmark = pytest.mark.usefixtures("double_precision")


def test_magnitude_per_layer_equals_numpy(fit: Fit) -> None:
    def play(theta: Tensors, mask: Tensors, clients: Clients) -> tuple[Tensors, Tensors]:
        for _ in range(4):
            theta = clients.round(theta, [mask] * 4)
            mask = per_layer(sizes(theta))
        return theta, mask

    _, first, last = check(fit, RankedMask(), 4, play)
    assert any((first[name] != last[name]).any() for name in WEIGHTS)


def test_purge_merge_tune_equals_numpy(fit: Fit) -> None:
    """FedSparsify: global magnitude, cubic schedule, pruned entries are zero and never return."""

    def play(theta: Tensors, mask: Tensors, clients: Clients) -> tuple[Tensors, Tensors]:
        assert all(mask[name].all() for name in WEIGHTS)
        for round in range(6):
            theta = clients.round(theta, [mask] * 4)
            t = 2 * ((round + 1) // 2)
            sparsity = 0.0 if t < 1 else 0.6 - 0.6 * (1 - (t - 1) / 5) ** 3
            if round + 1 >= 6:
                sparsity = 0.6
            mask = all_together({n: np.where(mask[n] > 0, abs(theta[n]), -1.0) for n in WEIGHTS}, 1 - sparsity)
            theta = masked(theta, mask)
        return theta, mask

    check(fit, RankedMask(Magnitude(), "global", Cubic(every=2), shrink=True, erase=True), 6, play)


def test_a_majority_of_clients_keeps_entries_as_in_numpy(fit: Fit) -> None:
    """FedSparsify with local pruning: an entry needs the votes of more than half of the clients."""
    split = list[bool]()

    def play(theta: Tensors, mask: Tensors, clients: Clients) -> tuple[Tensors, Tensors]:
        for round in range(4):
            results, theta = clients.results(theta, [mask] * 4), clients.round(theta, [mask] * 4)
            if round % 2:
                votes = [
                    all_together({n: np.where(mask[n] > 0, abs(each[n]), -1.0) for n in WEIGHTS}, DENSITY)
                    for each in results
                ]
                counts = {n: np.sum([vote[n] for vote in votes], axis=0) for n in WEIGHTS}
                split.append(any((counts[n] == 2).any() for n in WEIGHTS))
                mask = {n: mask[n] * (counts[n] > 2) for n in WEIGHTS}
            theta = masked(theta, mask)
        return theta, mask

    check(fit, VotedMask(every=2), 4, play)
    assert any(split)


def four_weights(*, width: float = 1.0) -> nn.Module:
    return nn.Linear(4, 1, bias=False)


@pytest.mark.parametrize(
    ("votes", "kept"),
    [
        ([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]], [1, 1, 0, 0]),
        ([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], [1, 0, 0, 0]),
    ],
)
def test_one_of_three_votes_is_no_majority_and_one_entry_stays(votes: list[list[int]], kept: list[int]) -> None:
    density = sum(votes[0]) / 4
    rule, levels = VotedMask("layer"), {"a": Level("a"), "b": Level("b", density=density)}
    rule.meet(LevelSet(four_weights, levels, seed=0), 0)
    rule.setup(Facts(sizes=[1, 1, 1], seed=0, rounds=4))
    rule.begin_round(0, 0.1)
    for client, vote in enumerate(votes):
        update = DenseUpdate(10.0 * torch.tensor(vote).double())
        rule.observe(update, rule.levels.indices["a"], Report(client, "b", 1, 0.0))
    rule.end_round(0)
    assert rule.mask["weight"].flatten().tolist() == [bool(each) for each in kept]


def met(rule: MaskRule, values: Sequence[Sequence[float]], **facts: Any) -> MaskRule:
    """Return a rule in a federation of global models with four weights each."""
    levels = LevelSet(four_weights, {"a": Level("a"), "b": Level("b", density=0.5)}, seed=0)
    models = nn.ModuleList([levels.net, *(levels.draw(number) for number in range(1, len(values)))])
    with torch.no_grad():
        for net, each in zip(models, values, strict=True):
            net.get_parameter("weight").copy_(torch.tensor([each]))
    rule.meet(levels, 0)
    rule.setup(Facts(sizes=[1] * 4, **{"rounds": 4, "models": models, **facts}))
    return rule


def weights(rule: MaskRule) -> list[list[float]]:
    return [net.get_parameter("weight").flatten().tolist() for net in rule.models]


def test_pruned_entries_are_zero_in_every_global_model() -> None:
    rule = met(RankedMask(erase=True), [[4, 3, 2, 1], [8, 7, 6, 5]])
    rule.begin()
    assert weights(rule) == [[4, 3, 0, 0], [8, 7, 0, 0]]
    rule.models[1].get_parameter("weight").data.fill_(9.0)  # a new model of a cluster
    rule.begin_round(0, 0.1)
    assert weights(rule) == [[4, 3, 0, 0], [9, 9, 0, 0]]


def test_a_resumed_rule_still_clears_the_entries_of_new_models() -> None:
    """A clustering may give clusters new models between the end of a round, with its checkpoint, and the next."""
    first, resumed = (met(RankedMask(erase=True), [[4, 3, 2, 1], [8, 7, 6, 5]]) for _ in range(2))
    first.clear_pruned()
    resumed.load_state_dict(first.state_dict())
    resumed.begin_round(1, 0.1)
    assert weights(resumed) == [[4, 3, 0, 0], [8, 7, 0, 0]]
    resumed.load_state_dict({"masks": first.state_dict()["masks"]})  # of an earlier version


def test_a_client_votes_by_the_values_of_its_own_global_model() -> None:
    rule = met(VotedMask("layer"), [[4, 3, 2, 1], [1, 2, 3, 4]])
    rule.begin_round(0, 0.1)
    for client, model in enumerate([0, 1, 1]):
        update = DenseUpdate(torch.zeros(4).double())
        rule.observe(update, rule.levels.indices["a"], Report(client, "b", 1, 0.0, model=model))
    rule.end_round(0)
    assert weights(rule) == [[0, 0, 2, 1], [0, 0, 3, 4]]


@pytest.mark.parametrize(
    ("rule", "facts", "message"),
    [
        (PersonalMask(), {"personal": frozenset(["weight"])}, "no personal weight for PersonalMask.* got 'weight'"),
        (VotedMask(), {"personal": frozenset(["weight"])}, "no personal weight for VotedMask.* but got 'weight'"),
        (DynamicMask(OwnMasks()), {"personal": frozenset(["weight"])}, "no personal weight for DynamicMask"),
        (HuntedMask(every=2), {"personal": frozenset(["weight"])}, "no personal weight for HuntedMask"),
        (DynamicMask(), {"rounds": -1}, "until, or trainer.max_epochs, for DynamicMask.* a run without a last round"),
        (RankedMask(schedule=Cubic()), {"rounds": -1}, "until, or trainer.max_epochs, for RankedMask"),
        (VotedMask(schedule=Cubic()), {"rounds": -1}, "until, or trainer.max_epochs, for VotedMask"),
    ],
)
def test_facts_that_do_not_fit_the_rule_are_refused(rule: MaskRule, facts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        met(rule, [[4, 3, 2, 1]], **facts)
    met(rule, [[4, 3, 2, 1]])


def test_movement_is_from_the_values_that_the_run_began_with() -> None:
    """They are not those that the seed draws, as in a run that begins with loaded weights."""
    rule, again = (met(RankedMask(Movement()), [[4, 3, 2, 1]]) for _ in range(2))
    rule.begin()
    again.load_state_dict(rule.state_dict())
    for each in (rule, again):
        each.begin_round(0, 0.1)
        each.models[0].get_parameter("weight").data.copy_(torch.tensor([[4.0, 3.1, 2.2, 1.5]]))
        each.end_round(0)
        assert each.mask["weight"].flatten().tolist() == [False, False, True, True]
    older = met(RankedMask(Movement()), [[4, 3, 2, 1]])
    older.load_state_dict({"masks": rule.state_dict()["masks"]})  # of an earlier version, with drawn values
    assert torch.equal(older.state_dict()["start"]["weight"], weights_of(older.levels.draw())["weight"])
    assert "start" not in rule.evaluation_state()


class Asked:
    """A probe of clients of two global models, whose answer is 1 and whose gradient is (1, 1, 1, 2)."""

    def model(self, client: int) -> int:
        return client % 2

    def level(self, client: int) -> str:
        return "b"

    def answers(self, clients: Sequence[int], question: object) -> dict[int, torch.Tensor]:
        return {client: torch.ones(1, dtype=torch.float64) for client in clients}

    def gradients(self, clients: Sequence[int], request: GradientRequest) -> list[ClientGradient]:
        part = Part({"weight": (slice(0, 1), slice(0, 4))})
        return [ClientGradient(client, 1, part, DenseUpdate(torch.tensor([1.0, 1, 1, 2]))) for client in clients]


def test_a_client_goes_back_to_the_first_values_of_its_own_global_model() -> None:
    values = [[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]]
    rule, again = (met(RewoundMask(accuracy=0.0), values, held_out=[1] * 4) for _ in range(2))
    rule.begin_round(0, 0.1)
    for net in rule.models:
        net.get_parameter("weight").data.fill_(9.0)
    rule.consult(0, [0, 1], Asked())
    again.load_state_dict(rule.state_dict())
    for each in (rule, again):
        firsts = [each.first_values(client) for client in range(3)]
        assert [first and first["weight"].flatten().tolist() for first in firsts] == [*values, None]
    state = {name: value for name, value in rule.state_dict().items() if name != "first"}
    again.load_state_dict({**state, "rewound": [1]})  # of an earlier version
    first, drawn = again.first_values(1), weights_of(again.levels.draw())
    assert first is not None
    assert torch.equal(first["weight"], drawn["weight"])


def test_a_client_of_feddst_drops_the_smallest_values_of_its_own_global_model() -> None:
    models = [{"weight": torch.tensor([each])} for each in ([4.0, 3.0, 0.0, 0.0], [3.0, 4.0, 0.0, 0.0])]
    mask, grow = {"weight": torch.tensor([[True, True, False, False]])}, ByClients()
    grow.consult(Exchange(0, 0, mask, {"weight": 1}, lambda: models[0], lambda: models), [0, 1], Asked())
    held = [grow.of_client(client) for client in (0, 1)]
    assert [each and each["weight"].int().tolist() for each in held] == [[[1, 0, 0, 1]], [[0, 1, 0, 1]]]


def test_pruned_entries_do_not_return_in_a_run_that_gets_further_rounds() -> None:
    """The cubic schedule of 8 rounds has density 0.71 after the second, and that of 2 rounds 0.5."""
    short, long = (met(RankedMask(schedule=Cubic(begin=0), shrink=True), [[4, 3, 2, 1]], rounds=n) for n in (2, 8))
    short.end_round(0)
    short.end_round(1)
    assert short.mask["weight"].flatten().tolist() == [True, True, False, False]
    long.load_state_dict(short.state_dict())
    long.end_round(1)
    assert long.mask["weight"].flatten().tolist() == [True, True, False, False]


def test_an_evaluation_before_a_run_does_not_choose_its_first_masks() -> None:
    rule = met(RankedMask(schedule=Cubic(begin=0)), [[4, 3, 2, 1]], rounds=None)
    assert rule.mask["weight"].sum() == 2
    rule.setup(Facts(sizes=[1] * 4, rounds=4))
    assert rule.mask["weight"].sum() == 4
    rule.end_round(3)
    for loaded in (met(RankedMask(schedule=Cubic(begin=0)), [[1, 2, 3, 4]], rounds=None), rule):
        loaded.load_state_dict(rule.state_dict())
        loaded.setup(Facts(sizes=[1] * 4, rounds=4))
        assert loaded.mask["weight"].flatten().tolist() == [True, True, False, False]


def test_seconds_count_every_epoch() -> None:
    assert [met(RankedMask(), [[4, 3, 2, 1]], epochs=E).samples_of_client for E in (1, 5)] == [1.0, 5.0]


def test_schedules_with_an_end_need_no_last_round() -> None:
    for rule in (DynamicMask(until=3), RankedMask(schedule=Cubic(until=3)), RankedMask(), GreedyMask()):
        met(rule, [[4, 3, 2, 1]], rounds=-1)


def test_clients_score_by_their_own_model_and_random_scores_change() -> None:
    rule = met(ClientImportance(RandomScore()), [[4, 3, 2, 1], [1, 2, 3, 4]])
    index, densities = rule.levels.indices["a"], {"b": 0.5}

    def sent(criterion: Criterion, task: Task) -> list[int]:
        models = [weights_of(net) for net in rule.models]
        request = MaskRequest(criterion=criterion, densities=densities, weights=models, seconds={"weight": 1.0})
        update = request.chosen(torch.ones(4), index, task)
        assert isinstance(update, SparseUpdate)
        return update.indices.tolist()

    assert [sent(SquaredTaylor(), Task(0, "b", 0, 0, model=model)) for model in (0, 1)] == [[0, 1], [2, 3]]
    assert sent(GradientPerTime(), Task(0, "b", 0, 0)) == [0, 1]
    drawn = {tuple(sent(RandomScore(), Task(client, "b", 0, 0))) for client in range(20)}
    assert len(drawn) > 3
    assert len({tuple(sent(RandomScore(), Task(0, "b", round, 0))) for round in range(20)}) > 3


def test_movement_and_taylor_scores_of_a_run_equal_numpy(fit: Fit) -> None:
    def moved(since: str) -> Callable[[Tensors, Tensors, Clients], tuple[Tensors, Tensors]]:
        def play(theta: Tensors, mask: Tensors, clients: Clients) -> tuple[Tensors, Tensors]:
            start = theta
            for round in range(4):
                before, theta = theta, clients.round(theta, [mask] * 4)
                if round % 2:
                    base = start if since == "start" else before
                    mask = per_layer({name: abs(theta[name] - base[name]) for name in WEIGHTS})
            return theta, mask

        return play

    def taylor(theta: Tensors, mask: Tensors, clients: Clients) -> tuple[Tensors, Tensors]:
        for _ in range(3):
            slopes = clients.gradients(masked(theta, mask))
            squares = clients.mean([{name: g**2 for name, g in each.items()} for each in slopes])
            theta = clients.round(theta, [mask] * 4)
            mask = per_layer({name: squares[name] * theta[name] ** 2 for name in WEIGHTS})
        return theta, mask

    check(fit, RankedMask(Movement(), every=2), 4, moved("start"))
    check(fit, RankedMask(Movement("round"), every=2), 4, moved("round"))
    check(fit, RankedMask(SquaredTaylor()), 3, taylor)


def test_erased_entries_began_at_zero_as_in_numpy(fit: Fit) -> None:
    """An entry that was erased has not moved, and does not take the place of one that was trained."""

    def erased(complement: bool) -> Callable[[Tensors, Tensors, Clients], tuple[Tensors, Tensors]]:
        def play(theta: Tensors, mask: Tensors, clients: Clients) -> tuple[Tensors, Tensors]:
            theta = start = masked(theta, mask)
            everything = {name: np.ones_like(mask[name]) for name in WEIGHTS}
            for _ in range(4):
                if complement:
                    mean = clients.mean(clients.results(theta, [everything] * 4))
                    theta = {name: np.where(mask.get(name, 0.0), theta[name], mean[name]) for name in theta}
                else:
                    theta = clients.round(theta, [mask] * 4)
                mask = per_layer({name: abs(theta[name] - start[name]) for name in WEIGHTS})
                theta, start = masked(theta, mask), masked(start, mask)
            return theta, mask

        return play

    check(fit, RankedMask(Movement(), erase=True), 4, erased(False))
    _, first, last = check(fit, RankedMask(Movement(), complement=True), 4, erased(True))
    assert any((first[name] != last[name]).any() for name in WEIGHTS)


def test_a_gradient_says_which_entries_were_sent() -> None:
    part = Part({"w": (slice(0, 2), slice(0, 2))})
    whole = ClientGradient(1, 3, part, DenseUpdate(torch.zeros(4)))
    assert whole.sent()["w"].tolist() == [[True, True], [True, True]]
    two = ClientGradient(1, 3, part, SparseUpdate(torch.ones(2), torch.tensor([1, 2]), 4))
    assert two.sent()["w"].tolist() == [[False, True], [True, False]]


def exchanged(round: int, count: float, until: int = 6) -> int:
    return floor(0.3 / 2 * (1 + cos(pi * round / until)) * count)


@pytest.mark.parametrize("seed", [0, 3])
def test_progressive_pruning_of_fedtiny_equals_numpy(fit: Fit, seed: int) -> None:
    """The server exchanges entries by the mean of each client's largest gradients; what it drops stays out."""

    def play(theta: Tensors, mask: Tensors, clients: Clients) -> tuple[Tensors, Tensors]:
        theta = masked(theta, mask)
        for round in range(6):
            slopes, counts = clients.gradients(theta), {n: exchanged(round, mask[n].sum()) for n in WEIGHTS}
            sent = [{n: g[n] * top(abs(g[n]), counts[n], 1 - mask[n]) for n in WEIGHTS} for g in slopes]
            theta = clients.round(theta, [mask] * 4)
            if (round + 1) % 2 == 0:
                grown = {n: top(abs(clients.mean(sent)[n]), counts[n], 1 - mask[n]) for n in WEIGHTS}
                mask = {n: top(abs(theta[n]), int(mask[n].sum()) - counts[n], mask[n]) + grown[n] for n in WEIGHTS}
            theta = masked(theta, mask)
        return theta, mask

    rule = DynamicMask(scope="layer", first=Magnitude() if seed else None, share=0.3, every=2)
    _, first, last = check(fit, rule, 6, play)
    for name in WEIGHTS:
        assert first[name].sum() == last[name].sum()
    assert any((first[name] != last[name]).any() for name in WEIGHTS)


def test_feddst_equals_numpy(fit: Fit) -> None:
    """Clients exchange entries by their own gradients; the server keeps the largest means of the union."""

    def play(theta: Tensors, mask: Tensors, clients: Clients) -> tuple[Tensors, Tensors]:
        theta = masked(theta, mask)
        for round in range(6):
            counts, due = {n: exchanged(round, mask[n].sum()) for n in WEIGHTS}, (round + 1) % 2 == 0
            masks = [mask] * 4
            if due:
                masks = [
                    {
                        n: top(abs(theta[n]), int(mask[n].sum()) - counts[n], mask[n])
                        + top(abs(slope[n]), counts[n], 1 - mask[n])
                        for n in WEIGHTS
                    }
                    for slope in clients.gradients(theta)
                ]
            theta = clients.round(theta, masks)
            union = {n: np.max([each[n] for each in masks], 0) for n in WEIGHTS}
            mask = {n: top(abs(theta[n]), int(mask[n].sum()), union[n]) for n in WEIGHTS} if due else mask
            theta = masked(theta, mask)
        return theta, mask

    check(fit, DynamicMask(ByClients(), share=0.3, every=2), 6, play)


def test_prunefl_equals_numpy(fit: Fit) -> None:
    """The greedy choice by squared gradients per second, with the seconds of the default device."""
    rule = GreedyMask(every=2, fixed_seconds=1e-4)

    def play(theta: Tensors, mask: Tensors, clients: Clients) -> tuple[Tensors, Tensors]:
        theta, seconds = masked(theta, mask), rule.seconds()
        for round in range(4):
            slopes = clients.gradients(theta)
            squares = clients.mean([{name: g**2 for name, g in each.items()} for each in slopes])
            theta = clients.round(theta, [mask] * 4)
            if round % 2:
                share = 0.3 * 0.5 ** ((round + 1) / 10_000)
                kept = {
                    n: top(abs(theta[n]), int(mask[n].sum()) - int(share * mask[n].sum()), mask[n]) for n in WEIGHTS
                }
                mask = greedy(squares, seconds, kept)
            theta = masked(theta, mask)
        return theta, mask

    _, first, last = check(fit, rule, 4, play)
    assert any((first[name] != last[name]).any() for name in WEIGHTS)


def greedy(squares: Tensors, seconds: dict[str, float], kept: Tensors) -> Tensors:
    """Return PruneFL's mask, entry by entry."""
    mask = {name: each.copy() for name, each in kept.items()}
    gain = sum((squares[n] * kept[n]).sum() for n in WEIGHTS)
    spent = 1e-4 + sum(seconds[n] * kept[n].sum() for n in WEIGHTS)
    free = [(n, i) for n in WEIGHTS for i in np.ndindex(kept[n].shape) if not kept[n][i]]
    for name, i in sorted(free, key=lambda each: -squares[each[0]][each[1]] / seconds[each[0]]):
        if squares[name][i] / seconds[name] <= gain / spent:
            break
        mask[name][i] = 1.0
        gain, spent = gain + squares[name][i], spent + seconds[name]
    return mask


def test_fedspa_equals_numpy(fit: Fit) -> None:
    """Every client exchanges entries of its own mask, by the values that it trained and by its first gradient."""
    rule, masks = DynamicMask(OwnMasks(), share=0.3, every=2), list[Tensors]()

    def play(theta: Tensors, mask: Tensors, clients: Clients) -> tuple[Tensors, Tensors]:
        masks.extend([mask] * 4)
        for round in range(6):
            counts = {n: exchanged(round, mask[n].sum()) for n in WEIGHTS}
            slopes = [gradient(masked(theta, own), *each) for own, each in zip(masks, clients.arrays, strict=True)]
            results = clients.results(theta, masks)
            theta = holder_mean(theta, results, masks, clients.sizes)
            if round % 2:
                masks[:] = [
                    {
                        n: top(abs(result[n]), int(own[n].sum()) - counts[n], own[n])
                        + top(abs(slope[n]), counts[n], 1 - own[n])
                        for n in WEIGHTS
                    }
                    for own, slope, result in zip(masks, slopes, results, strict=True)
                ]
        return theta, mask

    check(fit, rule, 6, play)
    for client, own in enumerate(masks):
        held = rule.of_client(client, DENSITY)
        assert held is not None
        assert all(np.array_equal(held[name].numpy(), own[name] > 0) for name in WEIGHTS)
    assert len({own["first.weight"].tobytes() for own in masks}) == 4


def test_sub_fedavg_equals_numpy(fit: Fit) -> None:
    """Every client prunes a tenth of the entries of every weight, of the values that it trained, if they moved."""
    rule, masks = PersonalMask(step=0.1, distance=0.03), list[Tensors]()

    def play(theta: Tensors, mask: Tensors, clients: Clients) -> tuple[Tensors, Tensors]:
        masks.extend([mask] * 4)
        steps = [0] * 4
        for _ in range(5):
            results, used, before = clients.results(theta, masks), list(masks), theta
            theta = holder_mean(theta, results, used, clients.sizes)
            for client, (own, result) in enumerate(zip(used, results, strict=True)):
                values = ({n: np.where(own[n] > 0, abs(each[n]), -1.0) for n in WEIGHTS} for each in (before, result))
                old, new = (per_layer(each, 1.0 - 0.1 * (steps[client] + 1)) for each in values)
                if sum((old[n] != new[n]).sum() for n in WEIGHTS) > 0.03 * sum(own[n].size for n in WEIGHTS):
                    masks[client], steps[client] = new, steps[client] + 1
        assert len(set(steps)) > 1
        return theta, mask

    check(fit, rule, 5, play)
    for client, own in enumerate(masks):
        held = rule.of_client(client, DENSITY) or rule.held(DENSITY)
        assert all(np.array_equal(held[name].numpy(), own[name] > 0) for name in WEIGHTS)


def test_client_importance_equals_numpy(fit: Fit) -> None:
    """Every second round a client chooses the entries of the largest (g w)^2 by its gradient of the whole model."""
    rule, masks = ClientImportance(every=2), list[Tensors]()

    def play(theta: Tensors, mask: Tensors, clients: Clients) -> tuple[Tensors, Tensors]:
        for round in range(4):
            if round % 2 == 0:
                slopes = clients.gradients(theta)
                masks[:] = [per_layer({n: (g[n] * theta[n]) ** 2 for n in WEIGHTS}) for g in slopes]
            theta = clients.round(theta, masks)
        return theta, mask

    check(fit, rule, 4, play)
    for client, own in enumerate(masks):
        held = rule.of_client(client, DENSITY)
        assert held is not None
        assert all(np.array_equal(held[name].numpy(), own[name] > 0) for name in WEIGHTS)


def test_client_importance_asks_every_ten_rounds_by_default() -> None:
    taylor = "SquaredTaylor(combine=mean_of_squares)"
    described = f"ClientImportance(criterion={taylor}, scope=layer, every=10, samples=None)"
    assert ClientImportance().describe() == described


class Votes:
    """A probe whose clients 0 and 1, of 3 and 1 samples, vote for the last and the last but one entry."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def level(self, client: int) -> str:
        return "b"

    def gradients(self, clients: Sequence[int], request: GradientRequest) -> Iterator[ClientGradient]:
        for client, samples, position in zip(clients, (3, 1), (3, 2), strict=True):
            update = SparseUpdate(torch.tensor([1.0]), torch.tensor([position]), 4)
            yield ClientGradient(client, samples, self.part, update)


def test_posterior_of_fedrts_has_the_values_by_hand() -> None:
    """Two clients of weights 3/4 and 1/4 vote on two held and two other entries of a weight."""
    growth, name = Posterior(trust=0.5, rate=1.0), "layer.weight"
    weights = {name: torch.tensor([[2.0, 1.0], [0.0, 0.0]])}
    held = {name: torch.tensor([[True, True], [False, False]])}
    whole = Part({name: (slice(0, 2), slice(0, 2))})
    part = Part(whole, held[name].flatten())
    exchange = Exchange(0, 0, held, {name: 1}, lambda: weights, lambda: [weights])
    growth.consult(exchange, [0, 1], Votes(whole))
    growth.observe(exchange, DenseUpdate(torch.tensor([0.0, 0.0])), part, Report(0, "b", 3, 0.0))
    growth.observe(exchange, DenseUpdate(torch.tensor([0.0, 5.0])), part, Report(1, "b", 1, 0.0))
    drawn = growth.chosen(exchange)[name]
    assert growth.alpha[name].flatten().tolist() == pytest.approx([1.875, 1.125, 1.375, 1.625])
    assert growth.beta[name].flatten().tolist() == pytest.approx([1.125, 1.875, 1.625, 1.375])
    assert int(drawn.count_nonzero()) == 2
