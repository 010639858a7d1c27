"""The comparison of methods of sub-models at equal budgets: its files, and the sizes that they state."""

from __future__ import annotations

import importlib
import re
import shlex
from functools import partial
from typing import Any

import pytest
import yaml

from hetfl import Level
from hetfl.compare.plan import parse_contenders
from hetfl.levels.budgets import Budgets
from hetfl.levels.level_set import LevelSet
from tests.demo_cases import CONFIGS, ROOT

BUDGETS = (15_208, 7_604, 3_802, 1_901)
EXPERIMENT = "relatives_digits"
SIZES = {
    "": (14_422, 7_574, 3_693, 1_790),
    "_exits": (15_208, 6_486, 3_740, 1_618),
    "_nefl": (13_767, 7_543, 3_470, 1_741),
    "_scalefl": (15_167, 6_109, 3_650, 1_501),
    "_split_mix": (14_320, 7_160, 3_580, 1_790),
}


def made(given: dict[str, Any]) -> Any:
    module, _, name = given["class_path"].rpartition(".")
    return partial(getattr(importlib.import_module(module), name), **given.get("init_args", {}))


@pytest.mark.parametrize("suffix", SIZES)
def test_levels_keep_to_the_budgets_and_have_the_stated_sizes(suffix: str) -> None:
    file = CONFIGS / f"experiment/{EXPERIMENT}{suffix}.yaml"
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]["init_args"]
    levels = settings["levels"]
    if "by" in levels:
        base = yaml.safe_load((CONFIGS / f"experiment/{EXPERIMENT}.yaml").read_text(encoding="utf-8"))
        reference = made(base["model"]["init_args"]["levels"]["reference"])
        chosen: Any = Budgets(**{**levels, "reference": reference})
    else:
        chosen = {name: Level(name, **level) for name, level in levels.items()}
    sizes = tuple(LevelSet(made(settings["net"]), chosen, 0).parameters.values())
    assert sizes == SIZES[suffix]
    assert all(0.75 * budget < size <= budget for size, budget in zip(sizes, BUDGETS, strict=True))


def test_the_documented_command_names_files() -> None:
    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    command = re.search(r"```\nE=(\S+)\n(hetfl compare .*?)```", text, re.DOTALL)
    assert command is not None
    joined = command[2].replace("\\\n", " ").replace("${E}", command[1]).replace("$E", command[1])
    words = shlex.split(joined)
    contenders = parse_contenders([words[i + 1] for i, word in enumerate(words) if word == "-r"])
    assert [each.name for each in contenders] == [
        *("heterofl", "fedrolex", "fjord", "split_mix", "scalefl"),
        *("nefl", "depthfl", "inclusivefl", "all_small", "exclusive"),
    ]
