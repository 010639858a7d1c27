"""Values that are changed without torch's version counter are evaluated with new statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch import nn

from hetfl import HeteroFL
from hetfl.checksum import checksum
from tests.conftest import small_data, small_levels, small_module, small_net

Fit = Callable[..., Trainer]
Edit = Callable[[nn.Module], None]


def plain() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)


def scaled(net: nn.Module) -> None:
    net.get_parameter("blocks.0.conv.weight").data.mul_(3.0)


def swapped(net: nn.Module) -> None:
    weight = net.get_parameter("blocks.0.conv.weight").data
    weight[:2] = weight[:2].flip(0).clone()


def from_numpy(net: nn.Module) -> None:
    net.get_parameter("blocks.0.conv.weight").detach().numpy()[:] *= -1.0


@pytest.mark.parametrize("edit", [scaled, swapped, from_numpy])
def test_a_test_after_an_edit_gathers_statistics_again(fit: Fit, edit: Edit) -> None:
    module, fresh, data = small_module(), small_module(), small_data()
    fit(module, data, rounds=1)
    stale = module.statistics.levels
    version = module.net.get_parameter("blocks.0.conv.weight")._version
    edit(module.net)
    assert module.net.get_parameter("blocks.0.conv.weight")._version == version
    fresh.load_state_dict(module.state_dict())
    fresh.models.version = module.models.version
    tested = [plain().test(each, datamodule=data, verbose=False)[0]["test/loss"] for each in (module, fresh)]
    assert tested[0] == tested[1]
    assert module.statistics.levels is not stale
    known = module.statistics.levels
    plain().test(module, datamodule=data, verbose=False)
    assert module.statistics.levels is known  # nothing has changed, so no client is asked again


@pytest.mark.parametrize("counted", [False, True])
def test_statistics_of_a_checkpoint_are_not_used_after_an_edit(fit: Fit, tmp_path: Path, counted: bool) -> None:
    fit(small_module(), rounds=1).save_checkpoint(tmp_path / "m.ckpt")
    levels = small_levels(1.0, 0.5, 0.25)
    module = HeteroFL.load_from_checkpoint(tmp_path / "m.ckpt", net=small_net, levels=levels)
    inputs = torch.rand(2, 1, 8, 8)
    assert module.submodel("c")(inputs).isfinite().all()
    module = HeteroFL.load_from_checkpoint(tmp_path / "m.ckpt", net=small_net, levels=levels)
    if counted:
        with torch.no_grad():
            module.net.get_parameter("blocks.0.conv.weight").mul_(3.0)
    else:
        scaled(module.net)
    with pytest.raises(RuntimeError, match="Expected static batch-norm statistics"):
        module.submodel("c")(inputs)


def test_a_checksum_accepts_tensors_of_any_dtype_and_shape() -> None:
    tensors = [torch.tensor(1.5), torch.ones(2, 3, dtype=torch.bfloat16).t(), torch.empty(0), torch.ones(2) > 0]
    assert checksum(tensors) == checksum([tensor.clone() for tensor in tensors]) != checksum(tensors[:2])
