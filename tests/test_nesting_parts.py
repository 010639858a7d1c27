"""The nesting check uses the parts that a rule makes, not only leading blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn

from hetfl import FedAvg, Level
from hetfl.data import TensorData
from hetfl.errors import ConfigurationError
from hetfl.part import Part
from hetfl.parts import PartRule, RandomChannels, Rolling
from tests.conftest import small_module

Fit = Callable[..., Trainer]


class Recurrent(nn.Module):
    """An LSTM over five steps of three features, and a classifier of its last state."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, int(8 * width), batch_first=True)
        self.classifier = nn.Linear(int(8 * width), 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.lstm(x)[0][:, -1])
        return logits


class Gates(PartRule):
    """The leading units of each of the four gates, which are stacked in an LSTM's weights."""

    def part(self, level: str, round: int, client: int) -> Part:
        def rows(name: str, entry: tuple[slice | Tensor, ...]) -> tuple[slice | Tensor, ...]:
            first = entry[0]
            if not name.startswith("lstm") or not isinstance(first, slice) or first.stop == 32:
                return entry
            return torch.cat([torch.arange(first.stop // 4) + 8 * gate for gate in range(4)]), *entry[1:]

        return Part({name: rows(name, entry) for name, entry in self.levels.indices[level].items()})


def sequences() -> TensorData:
    random = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(80, 5, 3, generator=random), torch.arange(80) % 4
    test: dict[str, Any] = {"test_inputs": inputs[:20], "test_targets": targets[:20]}
    return TensorData(train_inputs=inputs, train_targets=targets, **test, num_clients=4, num_classes=4)


def test_leading_units_of_lstm_gates_nest_and_leading_rows_are_refused_by_name(fit: Fit) -> None:
    levels = {"a": Level("a"), "b": Level("b", 0.5)}
    module = small_module(FedAvg, net=Recurrent, levels=levels, parts=Gates())
    before = module.net.get_parameter("lstm.weight_hh_l0").clone()
    fit(module, sequences(), rounds=2)
    assert not torch.equal(module.net.get_parameter("lstm.weight_hh_l0"), before)
    with pytest.raises(ConfigurationError, match="at level b .* different outputs from layer 'lstm' on"):
        fit(small_module(FedAvg, net=Recurrent, levels=levels), sequences(), rounds=1)


class Flat(nn.Module):
    """Two channels of four pixels, flattened before a classifier."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels = int(4 * width)
        self.conv = nn.Conv1d(3, channels, 2)
        self.classifier = nn.Linear(4 * channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.relu(self.conv(x.movedim(1, 2))).flatten(1))
        return logits


@pytest.mark.parametrize("rule", [Rolling, RandomChannels])
def test_a_flatten_is_refused_where_its_positions_do_not_follow_the_channels(fit: Fit, rule: type[PartRule]) -> None:
    """Leading channels are leading positions, so prefixes are right; a window of channels is no window of positions."""
    levels = {"a": Level("a"), "b": Level("b", 0.5)}
    fit(small_module(FedAvg, net=Flat, levels=levels), sequences(), rounds=1)
    with pytest.raises(ConfigurationError, match="at level b .* different outputs from layer 'classifier' on"):
        fit(small_module(FedAvg, net=Flat, levels=levels, parts=rule()), sequences(), rounds=1)
