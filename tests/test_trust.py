"""A configuration runs only constructors of classes from trusted packages."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from hetfl.cli import main
from hetfl.cli.one_line import command_line
from hetfl.cli.starting import start
from hetfl.cli.trust import USUAL, check_class_paths, class_paths, trusted_packages
from hetfl.errors import ConfigurationError
from tests.demo_cases import CONFIGS, DEMO, FEW, refused
from tests.trust_cases import FILES, IMPORTING, IMPORTS, POPEN, RUNS, THING, USER_FUNCTION

STRICT = "hetfl,torch,lightning"
SHORT = [*DEMO, *FEW, "--trainer.max_epochs=1"]
VERBS = {
    "fit": ["fit", *SHORT],
    "validate": ["validate", *SHORT, "--ckpt_path=run/checkpoints/last.ckpt"],
    "test": ["test", *SHORT, "--ckpt_path=run/checkpoints/last.ckpt"],
    "export": ["export", "run"],
    "resume": ["resume", "run"],
    "data": ["data", *SHORT],
    "compare": ["compare", "--dry_run", "--out=compared", "-r", f"a={CONFIGS / 'demo.yaml'}", *FEW],
}


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("attack", "stranger"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name, text in {**FILES, "stranger.py": IMPORTING}.items():
        Path(name).write_text(text)


def make_run() -> None:
    """Make a run folder with a checkpoint that is not read before the configuration."""
    Path("run/checkpoints").mkdir(parents=True)
    Path("run/checkpoints/last.ckpt").touch()
    Path("run/config.yaml").write_text((CONFIGS / "demo.yaml").read_text())


@pytest.mark.parametrize("case", RUNS)
def test_no_configuration_runs_a_command(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, ["describe", *SHORT, *RUNS[case]])
    assert not Path("ran").exists()
    assert len(error) < 1100


@pytest.mark.parametrize("verb", VERBS)
def test_no_subcommand_runs_a_command(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    if verb == "data":  # no setting of a data set is a plain callable
        hostile, expected = (
            ["--data.partitioner", USER_FUNCTION],
            "data.partitioner: Import path attack.touch does not correspond",
        )
    else:
        hostile, expected = (
            ["--model.local.optimizer", USER_FUNCTION],
            "Expected a class as class_path but got attack.touch",
        )
    assert expected in refused(capsys, [*VERBS[verb], *hostile])
    assert not Path("ran").exists()


@pytest.mark.parametrize("verb", ["resume", "export", "compare"])
def test_a_run_folder_of_someone_else_runs_no_command(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("{class_path: torch.optim.SGD", "{class_path: attack.touch"))
    args = ["compare", "--dry_run", "--out=compared", "-r", "a=run/config.yaml"] if verb == "compare" else [verb, "run"]
    assert "model.local.optimizer: Expected a class as class_path but got attack.touch" in refused(capsys, args)
    assert not Path("ran").exists()


def test_functions_with_a_return_annotation_are_accepted() -> None:
    functions = ["--model.net=attack.make", "--model.server_optimizer=attack.optimize"]
    main(["describe", *SHORT, "--model.levels={a: {width: 1.0}}", "--model.check_nesting=false", *functions])


@pytest.mark.parametrize("case", IMPORTS)
def test_untrusted_packages_are_not_imported(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HETFL_TRUSTED", STRICT)
    error = refused(capsys, ["describe", *SHORT, *IMPORTS[case]])
    assert "HETFL_TRUSTED" in error
    assert not Path("ran").exists()


def test_without_strict_mode_untrusted_packages_are_imported(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["describe", *SHORT, "--model.net", THING])
    assert Path("ran").exists()


def test_a_users_package_can_be_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETFL_TRUSTED", " torch , attack.Net ")
    whole = ["--model.levels={a: {width: 1.0}}", "--model.check_nesting=false", "--model.net=attack.Net"]
    main(["describe", *SHORT, *whole])


@pytest.mark.parametrize("text", ["hetfl,,torch", "my package", "os.system()", "jsonargparse", "+", "a/b"])
def test_an_invalid_list_of_packages_is_refused(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HETFL_TRUSTED", text)
    assert "Expected packages separated by commas in HETFL_TRUSTED" in refused(capsys, ["describe", *SHORT])


def test_trusted_packages_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trusted_packages() is None
    assert trusted_packages(USUAL) == USUAL
    monkeypatch.setenv("HETFL_TRUSTED", "mine.nets,torch")
    assert trusted_packages(USUAL) == ("hetfl", "mine.nets", "torch")
    monkeypatch.setenv("HETFL_TRUSTED", "torch,+mine")
    assert trusted_packages() == (*USUAL, "mine")
    monkeypatch.setenv("HETFL_TRUSTED", "*")
    assert trusted_packages(USUAL) is None


def test_a_prefix_of_a_package_name_is_not_trusted() -> None:
    check_class_paths({"a": [{"class_path": "torch.nn.Linear"}]}, ["torch"])
    with pytest.raises(ConfigurationError, match=r"a.0.class_path: Expected a class of torch .* but got torchevil.Net"):
        check_class_paths({"a": [{"class_path": "torchevil.Net"}]}, ["torch"])


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_packaged_configuration_needs_only_the_default_packages(file: Path) -> None:
    config = yaml.safe_load(file.read_text())
    check_class_paths(config, USUAL)
    assert "class_path" not in file.read_text() or list(class_paths(config))


def test_a_node_and_a_server_trust_the_default_packages(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flwr", reason="hetfl flower needs Flower: pip install 'hetfl[flower]'")
    from hetfl.flower.command.client_app import make_node
    from hetfl.flower.command.server_app import ServingCLI

    serving: Any = partial(ServingCLI, grid=None, standing=None, settings={"home": "."})  # type: ignore[arg-type]
    hostile = [*SHORT, "--model.net=stranger.Thing"]
    for attempt in (
        lambda: make_node(hostile, [0], "states"),
        lambda: start(["fit", *hostile], cli=serving),
    ):
        with pytest.raises(SystemExit) as stop, command_line():
            attempt()
        assert stop.value.code == 2
        assert "in HETFL_TRUSTED but got stranger.Thing" in capsys.readouterr().err
        assert not Path("ran").exists()
    monkeypatch.setenv("HETFL_TRUSTED", "+stranger")
    with pytest.raises(SystemExit), command_line():
        make_node(hostile, [0], "states")
    assert "'width'" in capsys.readouterr().err
    assert Path("ran").exists()


def test_the_popen_attack_works_outside_hetfl() -> None:
    """The attacks of these tests would run a command: this one does so when it is called."""
    import subprocess

    with subprocess.Popen(**yaml.safe_load(POPEN)["init_args"]) as process:
        process.wait()
    assert Path("ran").exists()
