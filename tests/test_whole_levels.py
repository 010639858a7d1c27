"""Levels in configurations: a later level replaces an earlier one of the same name, and an option changes one field."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from hetfl.cli import main
from hetfl.cli.whole_levels import options_with_whole_levels, with_whole_levels
from hetfl.types import Level

FEW = "model: {init_args: {levels: {a: {width: 1.0}, b: {width: 0.5, rank: 3}}}}"


def whole(**sizes: Any) -> dict[str, Any]:
    return {**asdict(Level()), **sizes}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["-c", "method/feddst"], {"a": whole(), "b": whole(density=0.2)}),
        (["-c", FEW], {"a": whole(), "b": whole(width=0.5, rank=3)}),
        (["--model.levels={b: {depth: 2}}"], {"b": whole(depth=2)}),
        (["--model.levels", "{b: {depth: 2}}"], {"b": whole(depth=2)}),
        (["-c", "{file}"], {"b": whole(depth=2)}),
        (["-c", FEW, "--model.levels.b.width=0.25"], {"a": whole(), "b": whole(width=0.25, rank=3)}),
    ],
)
def test_a_later_level_replaces_an_earlier_one_as_a_whole(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, given: list[str], expected: dict[str, Any]
) -> None:
    """The demo has levels a to e by width."""
    (tmp_path / "mine.yaml").write_text("model: {levels: {b: {depth: 2}}}")
    arguments = [argument.replace("{file}", str(tmp_path / "mine.yaml")) for argument in given]
    with pytest.raises(SystemExit):
        main(["fit", "-c", "demo", *arguments, "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["levels"] == expected


@pytest.mark.parametrize("levels", [{"by": "params", "budgets": [1.0]}, {"a": 0.5}, None, "levels.yaml", {}])
def test_budgets_and_wrong_values_are_left_to_the_parser(levels: Any) -> None:
    assert with_whole_levels({"model": {"init_args": {"levels": levels}}}) == {
        "model": {"init_args": {"levels": levels}}
    }
    option = f"--model.levels={yaml.safe_dump(levels, default_flow_style=True).strip()}"
    assert options_with_whole_levels(["fit", option]) == ["fit", option]
    assert options_with_whole_levels(["--model.levels", "{a: "]) == ["--model.levels", "{a: "]
