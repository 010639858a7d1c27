"""Methods of sub-models on Digits: they learn, a resumed run ends with the same bits, and sub-models are exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch.optim import SGD

import hetfl
from hetfl.export import export_submodel
from hetfl.local import LocalTraining
from hetfl.selection import Uniform
from tests.relative_cases import METHODS

Fit = Callable[..., Trainer]
LONGER = LocalTraining(
    epochs=3, batch_size=10, gradient_clip=1.0, optimizer=lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4)
)


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_ends_with_the_same_bits_and_is_exported(name: str, fit: Fit, tmp_path: Path) -> None:
    whole, first, again = (METHODS[name]() for _ in range(3))
    trainer = fit(whole, rounds=3, name="whole")
    fit(first, rounds=1, name="first").save_checkpoint(tmp_path / "one.ckpt")
    resumed = fit(again, rounds=3, name="again", ckpt=str(tmp_path / "one.ckpt"))
    assert whole.net.state_dict().keys() == again.net.state_dict().keys()
    for (tensor, p), q in zip(whole.net.named_parameters(), again.net.parameters(), strict=True):
        assert torch.equal(p, q), tensor
    assert resumed.callback_metrics["comm/down_bytes_total"] == trainer.callback_metrics["comm/down_bytes_total"]
    level = list(whole.levels)[1]
    export_submodel(whole, level, tmp_path / "sub.safetensors")
    net, x = hetfl.load(tmp_path / "sub.safetensors"), torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(net(x), whole.submodel(level)(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_six_rounds_are_three_times_as_good_as_a_guess(name: str, fit: Fit) -> None:
    """Of Ditto the clients' own models: running statistics of two widths make the global model slower."""
    trainer = fit(METHODS[name](local=LONGER, selection=Uniform(6)), rounds=6)
    assert float(trainer.callback_metrics["local/personal_accuracy" if name == "ditto" else "val/accuracy"]) > 0.3
