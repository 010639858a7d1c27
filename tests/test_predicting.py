"""A module loaded from a checkpoint, and ``trainer.predict``: equal logits with and without a data module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from hetfl import FederatedModule, HeteroFL
from hetfl.clustering import IFCA
from hetfl.errors import ConfigurationError
from tests.conftest import small_data, small_levels, small_module, small_net

Fit = Callable[..., Trainer]
LEVELS: dict[str, Any] = {"net": small_net, "levels": small_levels(1.0, 0.5, 0.25)}


def plain(**options: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", **quiet, **options)


def logits(module: FederatedModule, level: str, inputs: Tensor, cluster: int = 0) -> Tensor:
    with torch.no_grad():
        return module.predict(module.submodel(level, cluster), inputs)


def predicted(module: FederatedModule, inputs: Tensor, checkpoint: str | None = None) -> Tensor:
    """Return the logits of transformed inputs, from a trainer without a data module."""
    loader = DataLoader(TensorDataset(inputs), 64)
    batches: Any = plain().predict(module, loader, ckpt_path=checkpoint, weights_only=True)
    return torch.cat(batches)


@pytest.mark.parametrize(
    ("clustering", "precision", "weights_only"),
    [(None, "32-true", False), (IFCA(2), "32-true", True), (None, "64-true", False)],
)
def test_a_module_is_loaded_from_a_checkpoint_without_data(
    fit: Fit, tmp_path: Path, clustering: IFCA | None, precision: str, weights_only: bool
) -> None:
    module = small_module(clustering=clustering)
    fit(module, rounds=1, precision=precision).save_checkpoint(tmp_path / "m.ckpt", weights_only)
    dtype = next(module.net.parameters()).dtype
    inputs = torch.rand(5, 1, 8, 8, dtype=dtype)
    expected = {(level, k): logits(module, level, inputs, k) for level in "abc" for k in range(len(module.models))}
    again = HeteroFL.load_from_checkpoint(tmp_path / "m.ckpt", clustering=clustering and IFCA(2), **LEVELS)
    assert again.models.version == 1
    for (level, cluster), logits_expected in expected.items():
        assert torch.equal(logits(again, level, inputs, cluster), logits_expected)
    assert len(expected) == 3 * len(again.models)


def test_a_checkpoint_of_other_levels_is_refused(fit: Fit, tmp_path: Path) -> None:
    fit(small_module(), rounds=1).save_checkpoint(tmp_path / "m.ckpt")
    with pytest.raises(ConfigurationError, match="checkpoint's levels") as error:
        HeteroFL.load_from_checkpoint(tmp_path / "m.ckpt", net=small_net, levels=small_levels(1.0, 0.5))
    assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match="'net'"):
        HeteroFL.load_from_checkpoint(tmp_path / "m.ckpt")


def test_predictions_give_the_accuracy_of_a_test(fit: Fit, tmp_path: Path) -> None:
    module, data = small_module(), small_data()
    trainer = fit(module, data, rounds=2)
    tested = trainer.test(module, datamodule=data, verbose=False)[0]
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    (loader,) = data.test_dataloader()
    targets = torch.cat([batch.targets for batch in loader])
    prepared = torch.cat([data.transform.eval(batch.inputs) for batch in loader])
    again = HeteroFL.load_from_checkpoint(tmp_path / "m.ckpt", **LEVELS)
    for level in (None, "b", "c"):
        module.prediction.level = again.prediction.level = level
        with_data = torch.cat(trainer.predict(module, datamodule=data))  # type: ignore[arg-type]
        accuracy = (with_data.argmax(1) == targets).float().mean().item()
        assert accuracy == pytest.approx(
            tested["test/accuracy" if level is None else f"test/accuracy_by_level/{level}"]
        )
        assert torch.allclose(predicted(again, prepared), with_data, atol=1e-5)
    again.prediction.level = None
    from_file = predicted(small_module(), prepared, str(tmp_path / "m.ckpt"))
    assert torch.equal(from_file, predicted(again, prepared))


def test_missing_statistics_and_wrong_prediction_settings_are_refused() -> None:
    module, samples = small_module(), DataLoader(TensorDataset(torch.rand(4, 1, 8, 8)))
    with pytest.raises(ConfigurationError, match="Expected static batch-norm statistics .* level a but got none"):
        plain().predict(module, samples)
    module.prediction.level = "z"
    with pytest.raises(ConfigurationError, match="Expected prediction.level in .* but got 'z'"):
        plain().predict(module, samples)
    module.prediction.level, module.prediction.model = None, 1
    with pytest.raises(ConfigurationError, match="Expected prediction.model below 1 but got 1"):
        plain().predict(module, samples)
