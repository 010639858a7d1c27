"""A misspelt name is answered with the nearest one that is known, in the same line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetfl.cli.helping import VERBS
from hetfl.cli.suggesting import nearest_option, with_suggestion
from tests.demo_cases import refused
from tests.test_cli import demo


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


OPTIONS: dict[str, tuple[str, str]] = {
    "of the trainer": ("--trainer.max_epoch=3", "'--trainer.max_epochs'"),
    "without its group": ("--max_epochs=3", "'--trainer.max_epochs'"),
    "with another group": ("--trianer.max_epochs=3", "'--trainer.max_epochs'"),
    "of the model": ("--model.upllink=1", "'uplink'"),
    "with the group of a class misspelt": ("--modle.uplink=1", "'--model.uplink'"),
    "of local training": ("--model.local.epochz=1", "'epochs'"),
    "of a compressor": (
        "--model.uplink.compressor=hetfl.compression.TopK --model.uplink.compressor.densty=1",
        "'density'",
    ),
    "of a data set": ("--data.num_client=3", "'num_clients'"),
    "of all data": ("--data.val_fracton=0.5", "'val_fraction'"),
    "a class": ("--model.net=hetfl.models.ConvNett", "'ConvNet'"),
    "a class without its package": ("--model.uplink.compressor=TopKK", "'TopK'"),
}


SLOW = {"with another group", "with the group of a class misspelt", "of a data set", "of all data", "of a compressor"}
"""Found as another one is."""


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in OPTIONS])
def test_an_option_is_suggested(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    option, near = OPTIONS[case]
    message = refused(capsys, demo(*option.split()))
    assert f": did you mean {near}?" in message
    assert message.count("did you mean") == 1


NET = "model: {init_args: {net: {class_path: hetfl.models.ConvNet, init_args: {hiden: [8]}}}}"
SLOW_KEYS = {"of the model", "of local training, in short", "of a data set", "of a class"}
YAML: dict[str, tuple[str, str]] = {
    "of the trainer": ("trainer: {max_epoch: 3}", "'trainer.max_epochs'"),
    "a group": ("trainr: {max_epochs: 3}", "'trainer.max_epochs'"),
    "of the model": ("model: {init_args: {upllink: null}}", "'uplink'"),
    "of local training": ("model: {init_args: {local: {init_args: {epochz: 3}}}}", "'epochs'"),
    "of local training, in short": ("model: {init_args: {local: {epochz: 3}}}", "'epochs'"),
    "of a data set": ("data: {init_args: {num_client: 3}}", "'num_clients'"),
    "of a class": (
        "model: {init_args: {net: {class_path: hetfl.models.ConvNet, init_args: {hiden: [8]}}}}",
        "'hidden'",
    ),
}


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW_KEYS)) for case in YAML])
def test_a_key_is_suggested(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, near = YAML[case]
    Path("wrong.yaml").write_text(text + "\n")
    message = refused(capsys, demo("-c", "wrong.yaml"))
    assert f": did you mean {near}?" in message
    assert message.rstrip().endswith("?")


@pytest.mark.parametrize(
    ("args", "near"),
    [
        (["fitt"], "did you mean 'fit'?"),
        (["reprot", "run"], "did you mean 'report'?"),
        (["report", "--uot=here"], "did you mean '--out'?"),
        (["fit", "-c", "dmeo"], "the nearest name is demo"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_verb_a_configuration_and_an_option_of_another_verb_are_suggested(
    args: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert near in refused(capsys, args)


def test_nothing_is_suggested_where_nothing_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean" not in refused(capsys, demo("--model.nope=1"))
    assert nearest_option("surprise", ["trainer.max_epochs", "model"]) == ""
    assert nearest_option("trainer.surprise", ["trainer.max_epochs", "model"]) == ""
    assert nearest_option("zzz.surprise", ["trainer.max_epochs", "model"]) == ""


def test_other_messages_stay_as_they_are() -> None:
    for message in ("Expected a int. Got value: x", "invalid choice: 'epochz' (choose from 'epochs')"):
        assert with_suggestion(message, ["epochs"]) == message


def test_all_verbs_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    """With an unknown option it is not the verb that is refused."""
    for verb in VERBS:
        assert "Expected a verb" not in refused(capsys, [verb, "--zzz"])
