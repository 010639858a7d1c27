"""Levels in configurations: a later level replaces an earlier one of the same name, and wrong values are refused."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from hetfl.cli import main
from hetfl.cli.level_type import read_level, written_level
from hetfl.compare.plan import differences
from hetfl.types import Level
from tests.demo_cases import refused


def test_a_later_level_replaces_an_earlier_one_as_a_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo has levels a to e by width, FedDST has a and a sparse level b, and the option has a deep level b."""
    for given, expected in (
        (["-c", "method/feddst"], {"a": {"width": 1.0}, "b": {"width": 1.0, "density": 0.2}}),
        (["--model.levels={b: {depth: 2}}"], {"b": {"width": 1.0, "depth": 2}}),
    ):
        with pytest.raises(SystemExit):
            main(["fit", "-c", "demo", *given, "--print_config"])
        assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["levels"] == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{a: {wdth: 1.0}}", "got 'wdth': did you mean 'width'?"),
        ("{a: {width: half}}", "Expected a number as width of a level but got 'half'"),
        ("{a: {depth: 1.5}}", "Expected an integer or null as depth of a level but got 1.5"),
        ("{a: {rank: true}}", "Expected an integer or null as rank of a level but got True"),
        ("{a: 0.5}", "Expected a mapping such as {width: 0.5} for a level but got 0.5"),
    ],
)
def test_wrong_values_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reason in refused(capsys, ["fit", "-c", "demo", f"--model.levels={text}"])


def test_what_is_written_is_read_as_the_same_level() -> None:
    for level in (Level(), Level(width=0.5, depth=3), Level("b", density=0.1), Level(rank=4)):
        assert read_level(written_level(level)) == level


def test_configurations_of_earlier_versions_are_no_other_settings() -> None:
    """They have every value of a level, the defaults too."""
    levels = {"a": {"width": 1.0}, "b": {"width": 0.5}}
    whole = {name: {**asdict(Level()), **level} for name, level in levels.items()}

    def changed() -> list[tuple[str, str, str]]:
        made, planned = (
            {"model": {"class_path": "HeteroFL", "init_args": {"levels": each}}} for each in (whole, levels)
        )
        return differences(made, planned)

    assert changed() == []
    whole["b"]["density"] = 0.5
    assert changed() == [("model.levels.b.density", "0.5", "–")]
