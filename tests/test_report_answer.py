"""The answer of a report: its sentences, the lead at each size, what the experiment was, and what is missing."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hetfl.analysis import load_run
from hetfl.compare.main import _failure
from hetfl.compare.plan import PlannedRun
from hetfl.display.runs import RunLine
from hetfl.report import answer_lines, verdict, write_material
from hetfl.report.document import Facts
from hetfl.report.experiment import facts
from hetfl.report.groups import make_groups
from hetfl.report.material import Material, make_material
from hetfl.report.panels import MOST_POINTS, Panel, lines_of, thinned
from hetfl.report.rounding import decimals
from hetfl.report.series import Band
from hetfl.report.tables import equal_cost_table
from hetfl.report.trade_off import front_of, points_of
from hetfl.report.writing import read_material
from tests.figure_cases import full_groups, full_run
from tests.report_cases import settings, two_groups, write_levels, write_run


def sized(root: Path, ends: dict[str, list[float]], seeds: int = 2) -> Material:
    """Return groups whose first levels end at ``ends``, one per group; the levels have equal sizes in all groups."""
    groups = {}
    for lr, (name, tops) in enumerate(ends.items()):
        folders = []
        for seed in range(seeds):
            folder = write_run(root / name / str(seed), seed, top=tops[0], config=settings(seed, lr=lr))
            write_levels(folder, {"a": 8000, "b": 1000, "c": 100})
            table = pd.read_csv(folder / "metrics.csv")
            for level, top in zip("abc", tops, strict=True):
                table[f"test/accuracy_by_level/{level}"] = [*[np.nan] * (len(table) - 1), top + 0.01 * seed]
            table.to_csv(folder / "metrics.csv", index=False)
            folders.append(load_run(folder))
        groups[name] = folders
    return make_material(make_groups(groups), None)


def test_the_verdict_names_the_leader_where_no_seed_overlaps_and_no_other(tmp_path: Path) -> None:
    material = sized(tmp_path, {"width": [0.90, 0.85, 0.80], "depth": [0.895, 0.70, 0.40]})
    assert verdict(material) == [
        "width leads by 15.00 points at an eighth of the size (level b, 1.00 k parameters) and by 40.00 points at "
        "1.2 % of the size (level c, 100 parameters).",
        "width and depth are not told apart at the whole size (level a, 8.00 k parameters): 90.50 % and 90.00 %.",
        "A run uploads 8.00 MB with width and 8.00 MB with depth.",
    ]
    table = equal_cost_table(material)
    assert table.head == ["level", "width", "depth", "Δ width − depth"]
    leads = [row[-1] for row in table.rows]
    assert [(cell.text, cell.note, cell.strong) for cell in leads if not isinstance(cell, str)] == [
        ("+0.50 points", "not told apart", False),
        ("+15.00 points", "", True),
        ("+40.00 points", "", True),
    ]
    assert [cell.strong for row in table.rows for cell in row[1:3] if not isinstance(cell, str)] == [
        *(False, False), *(True, False), *(True, False)
    ]  # fmt: skip


def test_of_three_groups_the_lead_is_over_the_next_best(tmp_path: Path) -> None:
    material = sized(tmp_path, {"x": [0.5, 0.5, 0.5], "y": [0.9, 0.9, 0.505], "z": [0.7, 0.7, 0.3]})
    first, second, _ = verdict(material)
    assert first == (
        "y leads by 20.00 points over z, the next best, at the whole size (level a, 8.00 k parameters) and by 20.00 "
        "points over z, the next best, at an eighth of the size (level b, 1.00 k parameters)."
    )
    assert second.startswith("x and y are not told apart at 1.2 % of the size")
    assert second.endswith("; y leads z.")
    assert [row[-1].text for row in equal_cost_table(material).rows if not isinstance(row[-1], str)] == [
        *["y by 20.00 points"] * 2, "not told apart"
    ]  # fmt: skip


def test_the_next_best_is_that_of_each_size(tmp_path: Path) -> None:
    ends = {"x": [0.9, 0.9, 0.9], "y": [0.85, 0.5, 0.895], "z": [0.4, 0.8, 0.5], "u": [0.3, 0.4, 0.6]}
    leads, ties, _ = verdict(sized(tmp_path / "one", ends))
    assert leads == (
        "x leads by 5.00 points over y, the next best, at the whole size (level a, 8.00 k parameters) and by 10.00 "
        "points over z, the next best, at an eighth of the size (level b, 1.00 k parameters)."
    )
    assert ties.endswith("; x leads u and z.")
    ends = {"x": [0.9, 0.9, 0.2], "y": [0.895, 0.895, 0.1], "z": [0.5, 0.4, 0.0], "u": [0.4, 0.5, 0.0]}
    texts = [text for text in verdict(sized(tmp_path / "two", ends)) if "not told apart" in text]
    assert [text.partition("; ")[2] for text in texts][:2] == ["x leads z and u.", "x leads u and z."]


def test_single_seeds_tell_nothing_apart(tmp_path: Path) -> None:
    sentences = verdict(sized(tmp_path, {"width": [0.9, 0.8, 0.7], "depth": [0.3, 0.2, 0.2]}, seeds=1))
    assert not any("leads" in sentence for sentence in sentences)
    assert "There is one run of each group, so no group is told apart from another: run several seeds" in sentences[1]
    groups = {name: [full_run(tmp_path / name, lr=lr)] for lr, name in enumerate(("one", "two"))}
    groups["other sizes"] = [
        write_run(tmp_path / f"other {seed}", seed, config=settings(seed, lr=9)) for seed in (0, 1)
    ]
    for folder in groups["other sizes"]:
        write_levels(folder, {"a": 10, "b": 5, "c": 2})
    made = make_groups({name: [load_run(each) for each in folders] for name, folders in groups.items()})
    assert "one run of each group that is compared, so no group" in verdict(make_material(made, None))[1]


def test_the_terminal_shows_the_same_sentences_in_80_columns(tmp_path: Path) -> None:
    material = sized(tmp_path, {"width": [0.90, 0.85, 0.80], "depth": [0.895, 0.70, 0.40]})
    lines = list(answer_lines(material))
    assert max(map(len, lines)) <= 80
    text = " ".join(line.strip() for line in lines)
    assert all(sentence in text for sentence in verdict(material))


def answers(told: Facts) -> dict[str, dict[str, str]]:
    return {fact.name: dict(fact.values) for fact in told.facts}


def test_the_report_says_what_the_experiment_was(tmp_path: Path) -> None:
    folders = full_groups(tmp_path)
    groups = make_groups({name: [load_run(each) for each in runs] for name, runs in folders.items()})
    told = answers(facts(groups))
    assert told["data"] == {"": "Digits: 1,000 training, 144 validation, 360 test samples, 10 classes"}
    assert told["seeds"] == {"": "0, 1, 2"}
    assert told["rounds"] == {"": "8"}
    assert told["levels"] == {"": "a: 18,000 parameters, b: 5,000 parameters, c: 1,200 parameters"}
    assert told["version"] == {"": "hetfl 0.1.0"}
    assert told["command"] == {"": "hetfl fit"}
    assert told["machine"] == {"": "4 cores"}
    assert told["method"] == {"": "HeteroFL"}
    assert answers(facts(make_groups({"x": [load_run(write_run(tmp_path / "bare"))]})))["version"] == {"": "unknown"}


@pytest.mark.parametrize("value", ["torch.optim.SGD", 3, [1], {"class_path": "torch.optim.SGD"}, {}, None])
def test_settings_of_any_form_are_told(tmp_path: Path, value: object) -> None:
    config = settings(local={"epochs": 1, "optimizer": value}, net=value, fleet=value, uplink=value, selection=value)
    run = load_run(write_run(tmp_path / "run", config=config))
    told = answers(facts(make_groups({"x": [run]})))
    assert "epoch" in told["clients"][""]


def test_missing_runs_are_named(tmp_path: Path) -> None:
    groups = two_groups(tmp_path, seeds=(0, 1, 2))
    groups["low"] = groups["low"][:2]
    assert "! There is no run of low with seed 2." in list(answer_lines(read_material(groups)))
    failed = _failure(PlannedRun("low", 2, tmp_path, ""), RunLine("low", 2, rounds=8, done=3, state="failed"))
    planned = read_material(groups, missing=[failed])
    html = write_material(planned, tmp_path / "out").read_text()
    assert "low seed 2 is missing: it failed after 3 of 8 rounds." in html
    assert "no run of low with seed 2" not in html


def test_scores_have_the_decimals_that_their_samples_support(tmp_path: Path) -> None:
    folder = full_run(tmp_path / "run")
    material = make_material(make_groups({"x": [load_run(folder)]}), None)
    assert material.headline.shown(0.97531) == "97.5 %"  # 144 samples
    text = "\n".join(answer_lines(material))
    assert not re.search(r"\d\.\d\d %", text)
    assert [decimals(count) for count in (99, 100, 9_999, 10_000)] == [0, 1, 1, 2]


def test_the_front_has_no_group_with_more_bytes_and_a_lower_score(tmp_path: Path) -> None:
    ends = {"few": (0.5, 1.0), "good": (0.8, 2.0), "worse": (0.6, 3.0), "best": (0.9, 4.0)}
    groups = {name: [full_run(tmp_path / name, top=top, cost=cost, lr=cost)] for name, (top, cost) in ends.items()}
    material = read_material(groups)
    front = [point.name for point in front_of(material.headline, points_of(material))]
    assert front == ["few", "good", "best"]
    out = tmp_path / "out"
    write_material(material, out)
    assert "No group with as few bytes has a better mean than few" in (out / "report.html").read_text()
    rows = pd.read_csv(out / "plots/accuracy_at_bytes.csv")
    assert rows["group"].tolist() == ["few", "good", "worse", "best"]
    assert rows.iloc[0, 3:].tolist() == [8.0, 50.0]


@pytest.mark.parametrize("names", [["low", "high", "dear"], ["high", "low", "dear"]])
def test_of_groups_with_equal_bytes_the_better_is_on_the_front(tmp_path: Path, names: list[str]) -> None:
    ends = {"low": (0.5, 1.0), "high": (0.8, 1.0), "dear": (0.7, 2.0)}
    groups = {
        name: [full_run(tmp_path / name, top=ends[name][0], cost=ends[name][1], lr=ends[name][0])] for name in names
    }
    material = read_material(groups)
    assert [point.name for point in front_of(material.headline, points_of(material))] == ["high"]


def test_the_page_of_a_large_comparison_is_thinned_but_its_tables_are_not(tmp_path: Path) -> None:
    x = np.arange(5000.0)
    bands = {name: Band(x, x / 5000, x / 5000, x / 5000, 2, dict.fromkeys("01", (x, x / 5000))) for name in "ab"}
    (panel,) = thinned([Panel("p", bands)])
    lines = [line for name, band in panel.bands.items() for line in lines_of(name, band)]
    assert sum(len(xs) for _, xs, _ in lines) <= MOST_POINTS
    assert all(xs[0] == 0 and xs[-1] == 4999 for _, xs, _ in lines)


@pytest.mark.slow
def test_the_page_is_light_and_its_headings_anchors_and_words_are_there(tmp_path: Path) -> None:
    html = write_material(read_material(full_groups(tmp_path)), tmp_path / "out").read_text()
    assert len(html.encode()) < 1_000_000
    for tag in ("main", "nav", "header"):
        assert html.count(f"<{tag}") >= 1
    anchors = set(re.findall(r'href="#([\w-]+)"', html)) - set(re.findall(r'xlink:href="#([\w-]+)"', html))
    identities = re.findall(r' id="([^"]+)"', re.sub(r"<image .*?/>", "", html, flags=re.DOTALL))
    assert anchors <= set(identities)
    assert not [name for name, count in itertools.groupby(sorted(identities)) if len(list(count)) > 1]
    words = re.findall(r'<svg role="img" aria-label="([^"]+)"', html)
    assert words[0].startswith("width leads at every size:")
    assert any(word.startswith("Global model, means over seeds: width ends at 91.0 %") for word in words)
    assert "@media print" in html
    assert "prefers-color-scheme: dark" in html
