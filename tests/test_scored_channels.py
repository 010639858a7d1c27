"""Structured pruning: scores of channels, what levels hold, runs, resumed runs, evaluations, snapshots and exports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn

import hetfl
from hetfl import FedAvg, FederatedModule, Level
from hetfl.analysis import Snapshots
from hetfl.analysis.holders import holders
from hetfl.compression import ErrorFeedback, TopK
from hetfl.errors import ConfigurationError
from hetfl.export import export_submodel
from hetfl.fleet import Device
from hetfl.local import Sequential, Stacked
from hetfl.models import LSTM, ConvNet, PreActResNet, Transformer
from hetfl.part import only
from hetfl.parts import NOBODY, PartRule, ScoredChannels
from hetfl.piece import Facts
from hetfl.pruning.channels import Group, Member, channel_scores, ranking
from hetfl.pruning.criteria import Criterion, Evidence, GradientPerTime, Movement, NormScale, RandomScore, Taylor
from hetfl.pruning.gradients import ClientGradient, GradientRequest
from hetfl.question import Question
from hetfl.submodel import parameters_of
from hetfl.testing import check_part_rule
from hetfl.updates import DenseUpdate
from tests.conftest import small_data, small_levels, small_module, small_net
from tests.test_nesting_parts import Flat, sequences
from tests.test_snapshots import snapshots_of

Fit = Callable[..., Trainer]
FILTERS = torch.tensor([[1.0, -2.0], [0.5, 0.1], [-0.2, 0.9]])
READERS = torch.tensor([[3.0, 1.0, 0.1], [0.0, -5.0, 0.2]])
PAIR = Group(3, (Member("one", 0), Member("bias", 0), Member("norm", 0), Member("two", 1, reads=True)))


@pytest.mark.parametrize(
    ("options", "expected", "kept"),
    [
        ({}, [3.0, 0.6, 1.1], {2: [0, 2], 1: [0]}),
        ({"fan_out": True}, [6.0, 6.6, 1.4], {1: [1]}),
        ({"fan_out": True, "mean": True}, [3.0, 3.3, 0.7], {1: [1]}),
        ({"of_norms": True}, [0.1, 0.3, 0.2], {2: [1, 2]}),
    ],
)
def test_a_channels_score_is_the_sum_over_its_filter_or_also_over_what_reads_it(
    options: dict[str, bool], expected: list[float], kept: dict[int, list[int]]
) -> None:
    """Three filters of a 1x1 convolution over two channels, and the two filters that read them."""
    scores = {"one": FILTERS.abs()[..., None, None], "two": READERS.abs(), "bias": torch.full((3,), 9.0)}
    if options.get("of_norms"):
        scores = {"norm": torch.tensor([0.1, 0.3, 0.2])}
    computed = channel_scores(PAIR, scores, **options)
    assert computed.tolist() == pytest.approx(expected)
    for count, positions in kept.items():
        assert ranking(computed)[:count].sort().values.tolist() == positions


def test_positions_of_a_flattened_map_count_for_their_channel_and_tied_tensors_add_up() -> None:
    group = Group(2, (Member("a", 0), Member("b", 0), Member("flat", 1, block=3, reads=True)))
    scores = {
        "a": torch.tensor([[1.0], [2.0]]),
        "b": torch.tensor([[5.0], [7.0]]),
        "flat": torch.arange(12.0).view(2, 6),
    }
    assert channel_scores(group, scores, fan_out=True).tolist() == [
        6.0 + 0 + 1 + 2 + 6 + 7 + 8,
        9.0 + 3 + 4 + 5 + 27 + 3,
    ]


def ready(rule: PartRule, net: Callable[..., nn.Module], inputs: Tensor, *widths: float) -> PartRule:
    """Return a rule of a module before its first round."""
    module = small_module(net=net, parts=rule, levels=small_levels(1.0, *widths))
    module.levels.samples = inputs
    rule.setup(Facts(parameters=parameters_of(module.net)))
    return rule


def positions(held: slice | Tensor) -> list[int]:
    return list(range(held.start, held.stop)) if isinstance(held, slice) else held.tolist()


def images(channels: int, size: int) -> Tensor:
    return torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_a_level_holds_the_best_channels_of_each_group_and_of_equal_ones_the_first() -> None:
    rule = ready(ScoredChannels(), partial(ConvNet, hidden=(4, 8)), images(1, 8), 0.5, 0.25)
    net: Any = rule.levels.net
    with torch.no_grad():
        for filters, order in (
            (net.blocks[0].conv.weight, [3, 1, 1, 2]),
            (net.blocks[1].conv.weight, [0] * 6 + [1, 0]),
        ):
            filters.copy_(torch.tensor(order).view(-1, 1, 1, 1) * torch.ones(filters.shape))
    rule.begin_round(0, 0.1)
    part = rule.part("b", 0, 3)
    first, second = [0, 3], [0, 1, 2, 6]
    for name, entry in part.items():
        dims = [positions(held) for held in entry]
        if name.startswith("blocks.0"):
            assert dims[0] == first
        elif name.startswith("blocks.1"):
            assert dims[0] == second
            assert dims[1:2] in ([], [first])
    assert positions(part["classifier.weight"][1]) == second
    assert positions(part["classifier.weight"][0]) == list(range(10))
    assert positions(rule.part("c", 0, NOBODY)["blocks.1.conv.bias"][0]) == [0, 6]
    assert rule.part("b", 0, 5) is part


def test_the_two_convolutions_of_a_residual_block_have_rankings_of_their_own() -> None:
    rule = ready(ScoredChannels(), partial(PreActResNet, hidden=(8, 8, 8, 8)), images(3, 8), 0.5)
    part = rule.part("b", 0, 0)
    stage = [
        positions(part[f"stages.1.{name}"][0]) for name in ("0.conv2.weight", "0.shortcut.weight", "1.conv2.weight")
    ]
    assert stage[0] == stage[1] == stage[2] == positions(part["stages.2.0.conv1.weight"][1])
    assert stage[0] != positions(part["stages.1.0.conv1.weight"][0])
    filters = [rule.levels.net.get_parameter(f"stages.1.{n}.weight") for n in ("0.conv2", "0.shortcut", "1.conv2")]
    sums = sum(each.detach().abs().sum((1, 2, 3)) for each in filters)
    assert isinstance(sums, Tensor)
    assert stage[0] == sorted(sums.argsort(descending=True)[:4].tolist())


@pytest.mark.parametrize(
    "make",
    [
        ScoredChannels,
        partial(ScoredChannels, RandomScore(), refresh_every=3),
        partial(ScoredChannels, Movement("round"), fan_out=True, mean=True),
        partial(ScoredChannels, NormScale()),
    ],
)
def test_every_criterion_fulfils_the_contract(make: Callable[[], PartRule]) -> None:
    check_part_rule(make)


@pytest.mark.parametrize("net", [Transformer, LSTM])
def test_nets_for_tokens_fulfil_the_contract(net: Any) -> None:
    tokens = torch.randint(30, (4, 6), generator=torch.Generator().manual_seed(0))
    check_part_rule(ScoredChannels(fan_out=True), partial(net, 30, 4, channels=16), inputs=tokens)


@pytest.mark.parametrize("criterion", [Movement("start"), Movement("round"), RandomScore()])
def test_channels_are_ranked_at_the_beginning_of_a_round_if_that_is_due(criterion: Criterion) -> None:
    rule = ready(ScoredChannels(criterion, refresh_every=2), partial(ConvNet, hidden=(8, 16)), images(1, 8), 0.25)
    weight = rule.levels.net.get_parameter("blocks.0.conv.weight")
    weight.data.mul_(2.0)  # a run may begin with loaded weights
    drawn, held, values = torch.Generator().manual_seed(1), [], [weight.detach().clone()]
    for round in range(7):
        rule.begin_round(round, 0.1)
        held.append(positions(rule.part("b", round, 0)["blocks.0.conv.bias"][0]))
        with torch.no_grad():
            weight.add_(torch.rand(weight.shape, generator=drawn) - 0.5)
        values.append(weight.detach().clone())
    assert held[0::2][:3] == held[1::2]
    assert held[2] != held[4] or held[4] != held[6]
    if isinstance(criterion, Movement):
        since = values[0] if criterion.since == "start" else values[5]
        moved = (values[6] - since).abs().sum((1, 2, 3))
        assert held[6] == sorted(moved.argsort(descending=True)[:2].tolist())


class Answers:
    """A probe that answers with a gradient of each of two clients; the second client holds half of the channels."""

    def __init__(self, rule: PartRule) -> None:
        self.rule, self.random, self.asked = rule, torch.Generator().manual_seed(2), list[GradientRequest]()
        self.sent: list[ClientGradient] = []

    def model(self, client: int) -> int:
        return 0

    def level(self, client: int) -> str:
        return "ab"[client]

    def gradients(self, clients: Sequence[int], request: GradientRequest) -> list[ClientGradient]:
        self.asked.append(request)
        trained = frozenset(parameters_of(self.rule.levels.net))
        parts = [only(self.rule.part(self.level(client), 0, client), trained) for client in clients]
        drawn = [DenseUpdate(torch.randn(part.size, generator=self.random)) for part in parts]
        self.sent = [ClientGradient(k, 2 + k, part, u) for k, (part, u) in enumerate(zip(parts, drawn, strict=True))]
        return self.sent

    def answers(self, clients: Sequence[int], question: Question) -> dict[int, torch.Tensor]:
        raise AssertionError("a ranking of channels needs no answers")


def test_gradients_of_a_round_rank_the_channels_of_the_next_that_is_due() -> None:
    rule = ready(ScoredChannels(Taylor(), refresh_every=2), partial(ConvNet, hidden=(8, 16)), images(1, 8), 0.5)
    rule.levels.flops = {"a": (1.0, 3.0)}
    probe, held = Answers(rule), list[list[int]]()
    for round in range(3):
        rule.begin_round(round, 0.1)
        held.append(positions(rule.part("b", round, 0)["blocks.1.conv.bias"][0]))
        rule.consult(round, [0, 1], probe)
    assert len(probe.asked) == 1
    weight = rule.levels.net.get_parameter("blocks.1.conv.weight").detach()
    total, samples = torch.zeros(weight.shape), torch.zeros(weight.shape)
    for answer in probe.sent:
        rows, columns = (torch.tensor(positions(held)) for held in answer.part["blocks.1.conv.weight"][:2])
        total[rows[:, None], columns] += answer.samples * answer.tensors()["blocks.1.conv.weight"]
        samples[rows[:, None], columns] += answer.samples
    mean = total / samples
    by_size, by_taylor = weight.abs().sum((1, 2, 3)), (weight * mean).abs().sum((1, 2, 3))
    assert held[0] == held[1] == sorted(by_size.argsort(descending=True)[:8].tolist())
    assert held[2] == sorted(by_taylor.argsort(descending=True)[:8].tolist()) != held[1]


class Timed(GradientPerTime):
    """Notes the seconds of the entries."""

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        self.seconds = evidence.seconds
        return super().scores(evidence)


def test_seconds_count_every_epoch() -> None:
    seconds, device, name = [], Device(), "blocks.1.conv.weight"
    for epochs in (1, 5):
        criterion = Timed()
        rule = ready(ScoredChannels(criterion), partial(ConvNet, hidden=(8, 16)), images(1, 8), 0.5)
        rule.setup(Facts([9, 9], parameters=parameters_of(rule.levels.net), epochs=epochs))
        rule.levels.flops = {"a": (1e9, 3e9)}
        rule.consult(0, [0, 1], Answers(rule))
        seconds.append(criterion.seconds[name] - 4 / device.downlink - 4 / device.uplink)
    assert seconds[1] == pytest.approx(5 * seconds[0])


def scored(criterion: Criterion | None = None, **changes: Any) -> FederatedModule:
    parts = ScoredChannels(criterion or Movement("round"), refresh_every=2)
    return small_module(**{"parts": parts, "uplink": ErrorFeedback(TopK(0.2)), **changes})


@pytest.mark.parametrize(
    ("criterion", "begun"), [(Movement("round"), 3), (Movement("start"), 4), (GradientPerTime(), 4)]
)
def test_a_resumed_run_ends_with_the_same_bits(fit: Fit, tmp_path: Path, criterion: Criterion, begun: int) -> None:
    """Rankings are due in rounds 2 and 4; the gradients of round 3 rank the channels of round 4."""
    whole, first, second = scored(criterion), scored(criterion), scored(criterion)
    one = fit(whole, rounds=5, name="whole")
    fit(first, rounds=begun, name="begun").save_checkpoint(tmp_path / "half.ckpt")
    two = fit(second, rounds=5, name="resumed", ckpt=str(tmp_path / "half.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    rows = [Path(str(trainer.log_dir), "metrics.csv").read_text().splitlines() for trainer in (one, two)]
    assert rows[0][begun + 1 :] == rows[1][1:]
    assert whole.parts.of_level("c", 4) == second.parts.of_level("c", 4) != first.parts.of_level("c", 4)
    probes = pd.read_csv(Path(str(one.log_dir), "metrics.csv"))["comm/down_probes_bytes"]
    assert (probes > 0).tolist() == [criterion.needs_gradients and round in (1, 3) for round in range(5)]


@pytest.mark.usefixtures("double_precision")
def test_clients_in_one_stack_train_the_same_as_one_after_the_other(fit: Fit) -> None:
    modules = [scored(executor=executor) for executor in (Sequential(), Stacked(4))]
    for number, module in enumerate(modules):
        fit(module, name=str(number), precision="64-true", limit_val_batches=0)
    pairs = zip(*(module.parameters() for module in modules), strict=True)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in pairs)
    assert all(m.parts.of_level("c", 2) != m.levels.indices["c"] for m in modules)


def test_an_evaluation_a_prediction_a_snapshot_and_an_export_use_the_last_ranking(fit: Fit, tmp_path: Path) -> None:
    module, data = scored(), small_data()
    trainer = fit(module, data, rounds=3, callbacks=[Snapshots(1)])
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    part = module.parts.of_level("c", 2)
    *_, last = snapshots_of(trainer)
    assert last.part(small_net(width=0.25), "c") == part
    weight = module.net.get_parameter("blocks.1.conv.weight").detach()
    expected = weight[positions(part["blocks.1.conv.weight"][0])][:, positions(part["blocks.1.conv.weight"][1])]
    assert torch.equal(module.submodel("c").get_parameter("blocks.1.conv.weight"), expected)
    trainer.test(module, datamodule=data, verbose=False)
    export_submodel(module, "c", tmp_path / "c.safetensors")
    assert torch.equal(hetfl.load(tmp_path / "c.safetensors").get_parameter("blocks.1.conv.weight"), expected)

    fresh, alone = scored(), Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    alone.validate(
        fresh, datamodule=small_data(), ckpt_path=tmp_path / "weights.ckpt", verbose=False, weights_only=True
    )
    assert fresh.parts.of_level("c", 2) == part
    metrics = pd.read_csv(Path(str(trainer.log_dir), "metrics.csv")).dropna(subset=["val/accuracy_by_level/c"])
    accuracy = alone.callback_metrics["val/accuracy_by_level/c"].item()
    assert accuracy == pytest.approx(metrics["val/accuracy_by_level/c"].iloc[-1], abs=1e-6)


def test_a_flattened_map_is_held_in_blocks(fit: Fit) -> None:
    levels = {"a": Level("a"), "b": Level("b", 0.5)}
    module = small_module(FedAvg, net=Flat, levels=levels, parts=ScoredChannels())
    with torch.no_grad():
        module.net.get_parameter("conv.weight")[0].zero_()
    fit(module, sequences(), rounds=1)
    part = module.parts.of_level("b", 0)
    channels = positions(part["conv.weight"][0])
    assert 0 not in channels
    assert positions(part["classifier.weight"][1]) == [
        4 * channel + pixel for channel in channels for pixel in range(4)
    ]


class Mixing(nn.Module):
    """A linear layer that reads differences of neighbouring units."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.hidden, self.classifier = nn.Linear(15, int(8 * width)), nn.Linear(int(8 * width), 4)

    def forward(self, x: Tensor) -> Tensor:
        units = torch.relu(self.hidden(x.flatten(1)))
        logits: Tensor = self.classifier(units - units.roll(1, 1))
        return logits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"net": Mixing, "parts": ScoredChannels()},
            "channels that can be permuted.* but got dimension 1 of 'classifier.weight', whose positions a layer",
        ),
        (
            {"net": Flat, "parts": ScoredChannels(NormScale())},
            "Expected scales of a norm layer with scores in the group of channels of 'conv.weight' but got none",
        ),
    ],
)
def test_what_cannot_be_ranked_is_refused_by_name(fit: Fit, changes: dict[str, Any], message: str) -> None:
    module = small_module(FedAvg, **{"net": Flat, "levels": small_levels(1.0, 0.5), **changes})
    with pytest.raises(ConfigurationError, match=message):
        fit(module, sequences(), rounds=1)


def test_a_refresh_of_no_rounds_and_a_replay_are_refused(fit: Fit) -> None:
    with pytest.raises(ConfigurationError, match="Expected refresh_every of at least 1 round but got 0"):
        ScoredChannels(refresh_every=0)
    module = scored()
    fit(module, rounds=1, limit_val_batches=0)
    with pytest.raises(ConfigurationError, match="a part rule that can be replayed, .* but got ScoredChannels"):
        holders(module, 1)
