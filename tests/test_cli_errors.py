"""The command line reports every user error in one line, with status 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hetfl.cli import main
from tests.demo_cases import refused
from tests.test_cli import demo, tiny


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


WRONG = {
    "unknown key": (["--model.nope=1"], "nope"),
    "unknown key in YAML": (["-c", "unknown.yaml"], "surprise"),
    "unknown class": (["--model.net=hetfl.models.Nope"], "Nope"),
    "wrong type": (["--trainer.max_epochs=many"], "many"),
    "width 0": (["--model.levels", "{a: {width: 1.0}, b: {width: 0.0}}"], "(0, 1] for level b but got 0.0"),
    "no data": (["--data=hetfl.data.MNIST", "--data.root=nowhere"], "nowhere"),
    "precision": (["--trainer.precision=16-mixed"], "16-mixed"),
    "net without the axis": (["--model.net=torch.nn.Flatten"], "'width'"),
    "threshold and density": (["--model.uplink.compressor.threshold=0.1"], "threshold"),
    "nothing for a number of a group": (
        ["--model.local.batch_size=null"],
        "Expected model.local.batch_size of type int but got null",
    ),
    "nothing for a truth value": (["-c", "nothing.yaml"], "Expected model.uplink.enabled of type bool but got null"),
    "null for a number": (
        ["--model.uplink.staleness=hetfl.compression.Decay", "--model.uplink.staleness.rate=null"],
        "Expected model.uplink.staleness.rate of type float but got null",
    ),
    "null for a setting of all data": (
        ["--data=hetfl.data.MNIST", "--data.val_fraction=null"],
        "Expected data.val_fraction of type float but got null",
    ),
    "null for a setting of all methods": (
        ["--model=hetfl.DepthFL", "--model.check_nesting=null"],
        "Expected model.check_nesting of type bool but got null",
    ),
    "null for one of several settings": (
        ["--model.uplink.compressor=hetfl.compression.StochasticQuantizer", "--model.uplink.compressor.norm=null"],
        "compressor.norm of type Literal['l2', 'max'] but got null",
    ),
    "residuals in a file": (
        ["--model.uplink.residuals=hetfl.store.DiskStore", "--model.uplink.residuals.folder=empty.yaml"],
        "clients' states into but got empty.yaml: a file is there",
    ),
    "tracker that is not installed": (
        ["--trainer.logger=lightning.pytorch.loggers.CometLogger"],
        "Requirement 'comet-ml",
    ),
    "no such config": (["-c", "missing.yaml"], "missing.yaml"),
    "no such checkpoint": (["--ckpt_path=missing.ckpt"], "missing.ckpt"),
    "checkpoint is a directory": (["--ckpt_path=."], "which is a directory"),
    "checkpoint empty": (["--ckpt_path=empty.yaml"], "empty.yaml is damaged"),
    "checkpoint is torch's own": (["--ckpt_path=plain.ckpt"], "plain.ckpt is damaged"),
    "checkpoint truncated": (["--ckpt_path=torn.ckpt"], "torn.ckpt is damaged"),
    "seed": (["--seed_everything=true"], "seed_everything"),
    "negative seed": (["--seed_everything=-1"], "from 0 to 4294967295 for seed_everything but got -1"),
    "negative seed of the model": (["--model.seed", "-3"], "from 0 to 4294967295 for a seed but got -3"),
    "seed of the data in YAML": (
        ["-c", "seed.yaml"],
        "Expected data_seed, beside model and data, but got data.seed in seed.yaml",
    ),
    "abbreviation": (["--trainer.max_epoch", "3"], "--trainer.max_epoch"),
    "no levels": (["--model.levels", "{}"], "at least one level"),
    "key twice": (["-c", "twice.yaml"], "trainer.max_epochs again in line 3"),
    "YAML syntax": (["-c", "syntax.yaml"], "syntax.yaml but got, in line 2"),
    "empty YAML": (["-c", "empty.yaml"], "empty.yaml"),
    "binary YAML": (["-c", "binary.yaml"], "binary.yaml"),
    "folder as YAML": (["-c", "."], "'.': it is not a file but a folder"),
    "no rounds": (["--trainer.max_epochs=0"], "max_epochs"),
    "half a batch": (["--trainer.limit_train_batches=0.5"], "one batch, but got 0.5: no round would be run"),
    "validation never": (["--trainer.check_val_every_n_epoch=0"], "check_val_every_n_epoch"),
    "block of an unknown key": (["--model.local.epoch=3"], "model.local: Option 'epoch'"),
    "unknown key of an optimizer": (["--model.local.optimizer.lrr=1"], "model.local.optimizer: Option 'lrr'"),
    "wrong type in a schedule": (["--model.local.scheduler.T_max=x"], "model.local.scheduler.T_max: Expected a int"),
    "an optimizer's refusal": (["--model.local.optimizer.lr=-1"], "Invalid learning rate: -1.0"),
    "devices unknown": (["--trainer.devices=abc"], "devices"),
    "strategy": (["--trainer.strategy=fsdp"], "single_device or ddp but got fsdp"),
    "accelerator": (["--trainer.accelerator=foo"], "foo"),
    "precision of half": (["--trainer.precision=bf16-true"], "bf16-true"),
    "root below a file": (["--trainer.logger.root=empty.yaml/runs"], "empty.yaml is a file"),
    "budgets of an unknown cost": (
        ["--model.levels", "{by: parms, budgets: [1.0]}"],
        "['params', 'flops', 'upload_bytes']",
    ),
    "budgets missing": (["--model.levels", "{by: params}"], "model.levels: "),
    "budgets along an unknown axis": (
        ["--model.levels", "{by: params, budgets: [1.0], axis: up}"],
        "['width', 'depth']",
    ),
    "budget misspelt": (["--model.levels", "{by: params, budgets: [1], refrence: 1}"], "Option 'refrence'"),
    "budget above 1": (["--model.levels", "{by: params, budgets: [2.0]}"], "got 2.0: more than 1 needs a reference"),
    "budgets of FLOPs": (["--model.levels", "{by: flops, budgets: [1.0]}"], "Expected sample_shape"),
    "other FLOPs": (["--model.levels", "{by: flops, budgets: [1], sample_shape: [1, 9, 9]}"], "[1, 8, 8], the data's"),
    "no such reference": (["--model.levels", "{by: params, budgets: [1], reference: hetfl.Nope}"], "Nope"),
    "depth of a net without one": (["--model.levels", "{by: params, budgets: [1.0], axis: depth}"], "takes 'depth'"),
    "several exits": (["--model.net=hetfl.models.MultiExitConvNet"], "for HeteroFL"),
}


SLOW = {
    *("null for a setting of all data", "null for a setting of all methods", "null for one of several settings"),
    *(
        "budgets of an unknown cost",
        "budgets missing",
        "budgets along an unknown axis",
        "budget above 1",
        "budgets of FLOPs",
    ),
    *("no such reference", "depth of a net without one", "other FLOPs", "width 0", "no rounds", "validation never"),
    *("checkpoint is torch's own", "checkpoint is a directory", "residuals in a file", "seed", "precision"),
    *("accelerator", "devices unknown", "folder as YAML", "binary YAML", "empty YAML"),
}
"""Slow cases, whose error path other cases also test; tests of the classes check most of their messages."""


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in WRONG])
def test_user_errors_are_reported_in_one_line_with_status_2(
    case: str, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    args, expected = WRONG[case]
    Path("unknown.yaml").write_text("trainer: {surprise: 1}\n")
    Path("twice.yaml").write_text("trainer:\n  max_epochs: 1\n  max_epochs: 2\n")
    Path("seed.yaml").write_text("data: {init_args: {seed: 3}}\n")
    Path("nothing.yaml").write_text("model: {init_args: {uplink: {init_args: {enabled: }}}}\n")
    Path("syntax.yaml").write_text("a: [1\nb: 2")
    Path("empty.yaml").touch()
    Path("binary.yaml").write_bytes(b"\x80\xff\0")
    torch.save({"state_dict": {}}, "plain.ckpt")
    Path("torn.ckpt").write_bytes(Path("plain.ckpt").read_bytes()[:-100])
    with pytest.raises(SystemExit) as stop:
        main(demo(*args))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert expected in error
    assert error.startswith("hetfl: error: ")
    assert error.count("\n") == 1
    assert len(error) < 400


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_an_evaluation_needs_a_checkpoint(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Expected --ckpt_path" in refused(capsys, tiny(verb=verb))


@pytest.mark.parametrize(("verb", "limit"), [("validate", "limit_val_batches"), ("test", "limit_test_batches")])
def test_an_evaluation_needs_a_batch(verb: str, limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("last.ckpt").touch()
    message = refused(capsys, tiny("--ckpt_path=last.ckpt", f"--trainer.{limit}=0", verb=verb))
    assert f"Expected trainer.{limit} above 0 or null for {verb} but got 0" in message


def test_an_unknown_stopping_metric_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    stopping = "[{class_path: EarlyStopping, init_args: {monitor: nope}}]"
    assert "metric `nope` which is not available" in refused(capsys, tiny(f"--trainer.callbacks={stopping}"))


def test_an_unknown_subcommand_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "fitt" in refused(capsys, ["fitt"])
