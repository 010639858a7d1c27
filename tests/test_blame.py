"""Errors in user code: one line with class, file, line and setting; the traceback on request."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hetfl.cli import main
from tests.demo_cases import CONFIGS

SOURCE = """
from torch import nn, zeros
from hetfl import ConfigurationError
from hetfl.compression import TopK
from hetfl.objectives import Classification

class Mine(nn.Sequential):
    def __init__(self, hidden: int | list[int] = 16, width: float = 1.0):
        channels = hidden * width
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

class Late(nn.Sequential):
    def __init__(self, width: float = 1.0):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        return helper(super().forward(x))

class Fine(nn.Sequential):
    def __init__(self, width: float = 1.0):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

def helper(x):
    return x @ zeros(3, 3)

class Failing(TopK):
    def apply(self, p, context):
        return {}["nothing"]

class Careful(TopK):
    def __init__(self, density: float = 0.1, least: float = 0.0):
        super().__init__(density)
        if least > 1:
            raise ConfigurationError(f"Expected least of at most 1 but got {least}")

class Base(Classification):
    def loss(self, outputs, targets):
        return outputs["nothing"]

class Derived(Base):
    pass
"""


CLIP = "{class_path: hetfl.hooks.ClipDelta, init_args: {max_norm"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the user's module, which Python imports only once."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "blamed_classes.py").write_text(SOURCE)
    return folder


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(home))


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(SOURCE.splitlines(), start=1) if text in line)


def failed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Return the standard error of a run with two files and some arguments."""
    Path("first.yaml").write_text(
        "model:\n  init_args:\n    net:\n      class_path: hetfl.models.ConvNet\n      init_args: {hidden: [8, 8]}\n"
    )
    files = [CONFIGS / "base.yaml", CONFIGS / "method/fedavg.yaml", CONFIGS / "data/digits.yaml", "first.yaml"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["fit", *(part for file in files for part in ("-c", str(file))), "--plots=false", "--trainer.max_epochs=1",
              "--trainer.enable_progress_bar=false", *args])  # fmt: skip
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("args", "error", "name", "line", "setting"),
    [
        (
            ["-c", "seed_everything: 0", "--model.net=blamed_classes.Mine"],  # the text has no file to name
            "TypeError: can't multiply sequence by non-int of type 'float'",
            "Mine.__init__",
            "channels = ",
            "model.net: blamed_classes.Mine; hidden=[8, 8] was given to hetfl.models.ConvNet in ",
        ),
        (
            ["--model.net=blamed_classes.Mine", "--model.net.hidden=[4]"],
            "TypeError: can't multiply sequence by non-int of type 'float'",
            "Mine.__init__",
            "channels = ",
            "model.net: blamed_classes.Mine)",
        ),
        (
            ["--model.net=blamed_classes.Late"],
            "Expected the net at level a to take",
            "helper",
            "zeros(3, 3)",
            "model.net: blamed_classes.Late)",
        ),
        (
            ["--model.uplink.compressor=blamed_classes.Failing", "--model.uplink.compressor.density=0.1"],
            "KeyError: 'nothing'",
            "Failing.apply",
            '"nothing"',
            "model.uplink.compressor: blamed_classes.Failing)",
        ),
        (
            ["--model.net=blamed_classes.Fine", "--data.objective=blamed_classes.Derived"],
            "Expected Derived.loss to take training targets from 0 to 9 with 10 classes but got: ",
            "Base.loss",
            'outputs["nothing"]',
            "data.objective: blamed_classes.Derived)",
        ),
    ],
    ids=["constructor", "given to it", "forward", "compressor", "method of a base class"],
)
def test_an_error_in_a_users_class_is_reported_with_its_location(
    capsys: pytest.CaptureFixture[str], home: Path, args: list[str], error: str, name: str, line: str, setting: str
) -> None:
    message = failed(capsys, *args)
    assert message.startswith("hetfl: error: ")
    assert message.count("\n") == 1
    assert error in message
    assert f"in {name}, {home / 'blamed_classes.py'} line {line_of(line)}" in message
    assert setting in message


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--model.uplink.compressor=blamed_classes.Careful", "--model.uplink.compressor.density=2"],
            "Expected density in (0, 1] but got 2.0 (model.uplink.compressor)",
        ),
        (
            ["--model.uplink.compressor=blamed_classes.Careful", "--model.uplink.compressor.least=2"],
            "Expected least of at most 1 but got 2.0 (model.uplink.compressor)",
        ),
        (
            ["-c", "model: {init_args: {hooks: [" + ", ".join(f"{CLIP}: {norm}}}}}" for norm in (1, -1)) + "]}}"],
            "Expected max_norm above 0 for ClipDelta but got -1.0 (model.hooks[1])",
        ),
        (["--model.local.epochs=0"], "Expected local.epochs of at least 1 but got 0 (model.local)"),
        (["--model.levels={a: {width: 2}}"], "Expected width in (0, 1] for level a but got 2.0 (model)"),
        (
            ["--model.local.optimizer=SGD", "--model.local.optimizer.lr=-1"],
            "Invalid learning rate: -1.0 (model.local.optimizer)",
        ),
    ],
    ids=["base class", "user's refusal", "one of two", "group", "model", "optimizer"],
)
def test_a_constructors_refusal_has_the_setting(
    capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    text = failed(capsys, *args)
    assert text.endswith(f"{message}\n")
    assert text.count("\n") == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("by", ["option", "environment"])
def test_the_whole_traceback_is_shown_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    if by == "environment":
        monkeypatch.setenv("HETFL_DEBUG", "1")
    message = failed(capsys, "--model.net=blamed_classes.Mine", *(["--debug"] if by == "option" else []))
    assert "Traceback (most recent call last)" in message
    assert "channels = hidden * width" in message
    assert message.splitlines()[-1].startswith("hetfl: error: TypeError: can't multiply")
    assert os.environ.get("HETFL_DEBUG") == ("1" if by == "environment" else None)
