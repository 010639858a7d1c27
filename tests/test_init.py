"""``hetfl init``: a project that can be trained at once, and no overwritten files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from hetfl.cli import init_command, main
from tests.demo_cases import UNTESTED, refused


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "kind", ["csv", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("digits", "images"))]
)
def test_a_new_project_trains_without_changes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["init", "mine", "--data", kind])
    assert "cd mine && hetfl fit -c project.yaml" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.syspath_prepend(tmp_path / "mine")
    monkeypatch.delitem(sys.modules, "net", raising=False)
    main(["fit", "-c", "project.yaml", "--trainer.max_epochs=2", *UNTESTED])
    monkeypatch.delitem(sys.modules, "net")
    (metrics,) = Path("runs/project").rglob("metrics.csv")
    assert pd.read_csv(metrics)["train/loss"].between(0, 5).all()


@pytest.mark.parametrize("kind", sorted(init_command.EXAMPLES))
def test_every_setting_has_a_comment(kind: str) -> None:
    main(["init", "--data", kind])
    text = Path("project.yaml").read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 120
    assert set(yaml.safe_load(text)) == {"seed_everything", "trainer", "data", "model"}
    structure = ("init_args:", "net:", "logger:", "compressor:", "transform:")
    settings = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    bare = [line.strip() for line in settings if "#" not in line and line.strip() not in structure]
    assert all(line.startswith(("init_args: {lr", "class_path: hetfl.data.ImageTransform")) for line in bare), bare


@pytest.mark.parametrize("name", ["project.yaml", "net.py", "table.csv"])
def test_nothing_is_overwritten(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(name).write_text("mine")
    assert f"Expected no {name} in ." in refused(capsys, ["init", "--data=csv"])
    assert Path(name).read_text() == "mine"
    assert [path.name for path in Path().iterdir()] == [name]


def test_an_existing_file_at_the_project_path_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").write_text("")
    assert "taken is a file" in refused(capsys, ["init", "taken"])
    assert "taken is a file" in refused(capsys, ["init", "taken/inside"])


def test_a_read_only_folder_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert f"{tmp_path} is read-only" in refused(capsys, ["init", "new"])
    assert not Path("new").exists()


def test_an_unknown_kind_of_data_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Expected --data of digits, csv, images but got 'parquet'" in refused(capsys, ["init", "--data", "parquet"])
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--method=fedrolex"], {"parts": "Rolling", "levels": {"a": 1.0, "b": 0.5, "c": 0.25}}),
        (["--method=depthfl", "--levels=4,2", "--compressor=chain"], {"parts": "Prefix", "levels": {"a": 4, "b": 2}}),
        (["--method=fedavg", "--compressor=none"], {"parts": "Prefix", "levels": {"a": 1.0}}),
    ],
)
def test_options_choose_method_levels_and_compressor(options: list[str], expected: dict[str, object]) -> None:
    main(["init", *options])
    model = yaml.safe_load(Path("project.yaml").read_text(encoding="utf-8"))["model"]["init_args"]
    assert model["parts"]["class_path"].endswith(str(expected["parts"]))
    assert {name: next(iter(level.values())) for name, level in model["levels"].items()} == expected["levels"]
    main(["describe", "-c", "project.yaml", "--model.net=hetfl.models.MultiExitConvNet"] if "depthfl" in options[0]
         else ["describe", "-c", "project.yaml", "--model.net=hetfl.models.ConvNet"])  # fmt: skip


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--method=heterofll", "did you mean 'heterofl'?"),
        ("--levels=0.5,1", "widths that fall from 1, such as 1,0.5,0.25, but got '0.5,1'"),
        ("--compressor=topk", "but got 'topk': did you mean 'top_k'?"),
    ],
)
def test_a_wrong_option_of_a_project_is_refused(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, ["init", option])
    assert not list(Path().iterdir())
