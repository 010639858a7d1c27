"""Export of levels of different ranks: merged nets and adapters of peft, from a trained federation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Trainer

import hetfl
from hetfl.cli import main
from hetfl.errors import ConfigurationError
from hetfl.export import export_adapter, export_submodel
from hetfl.models import ConvNet
from tests.conftest import small_module
from tests.lora_cases import IMAGES, lora_module

Fit = Callable[..., Trainer]


def test_levels_are_exported_as_merged_nets(fit: Fit, tmp_path: Path) -> None:
    module = lora_module()
    fit(module, rounds=2)
    inputs = torch.rand(6, 1, 8, 8)
    for level in "abc":
        expected = module.submodel(level).cpu()(inputs).detach()
        card = export_submodel(module, level, path := tmp_path / f"{level}.safetensors")
        loaded = hetfl.load(path)
        assert type(loaded) is ConvNet
        assert card.level.rank is None
        assert card.parameters == sum(parameter.numel() for parameter in IMAGES().parameters())
        assert torch.allclose(loaded(inputs), expected, atol=1e-5)


def test_levels_are_exported_as_adapters(fit: Fit, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    module = lora_module()
    fit(module, rounds=2)
    inputs = torch.rand(6, 1, 8, 8)
    for level in "abc":
        expected = module.submodel(level).cpu()(inputs).detach()
        export_adapter(module, level, tmp_path / level)
        base = IMAGES()
        state = dict(module.net.net.state_dict())
        base.load_state_dict({name: state[name] for name in base.state_dict()})
        adapter = peft.PeftModel.from_pretrained(base, tmp_path / level).eval()
        assert torch.allclose(adapter(inputs), expected, atol=1e-5)
        assert adapter.peft_config["default"].r == module.levels[level].rank


def test_the_command_exports_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--data.num_clients=10", "--model.selection.clients_per_round=3", "--model.net.net.hidden=[8,8]"]
    short = ["--trainer.max_epochs=1", "--trainer.limit_val_batches=0", "--final_test=false", "--plots=false"]
    main(["fit", "-c", "demo", "-c", "experiment/lora_demo", *small, *short, f"--trainer.logger.root={tmp_path}"])
    (run,) = (tmp_path / "demo").iterdir()
    given = ["export", "-c", f"{run}/config.yaml", "--ckpt_path", f"{run}/checkpoints/last.ckpt", "--level=c"]
    main(given)
    main([*given, "--format=peft"])
    assert "exported" in capsys.readouterr().out
    assert {path.name for path in (run / "export").iterdir()} == {"c.safetensors", "c.safetensors.json", "c.peft"}
    assert {path.name for path in (run / "export" / "c.peft").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_nets_without_adapters_have_none_to_export(fit: Fit, tmp_path: Path) -> None:
    module = small_module()
    fit(module, rounds=1)
    with pytest.raises(ConfigurationError, match=r"a net of hetfl.lora.LoRA for peft but got ConvNet"):
        export_adapter(module, "b", tmp_path)
    with pytest.raises(ConfigurationError, match=r"a level in \['a', 'b', 'c'\] but got 'z'"):
        export_adapter(module, "z", tmp_path)
    with pytest.raises(ConfigurationError, match="a cluster from 0 to 0 to export but got 1"):
        export_adapter(module, "b", tmp_path, 1)
