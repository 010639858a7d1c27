"""Reports on runs with a headline metric other than accuracy."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import unescape
from pathlib import Path

import pandas as pd
import pytest

from hetfl.analysis import load_run
from hetfl.analysis.theme import group_styles
from hetfl.errors import ConfigurationError
from hetfl.report import write_report
from hetfl.report.composing import compose
from hetfl.report.groups import make_groups
from hetfl.report.material import make_material
from hetfl.report.pictures import draw_all, picture_names
from hetfl.report.rendering import to_markdown
from hetfl.report.series import ROUNDS, amount_to_reach
from hetfl.report.spread import Spread
from hetfl.report.wording import level_sentence
from hetfl.runs.headline import FILE, Headline
from tests.headline_cases import MAE, PERPLEXITY, R2, write_run
from tests.report_cases import write_levels

GOOD, BAD = [60.0, 50.0, 40.0], [90.0, 80.0, 70.0]
RUNS = {"good": GOOD, "lost": [90.0, 80.0, float("nan")]}


def two_groups(
    root: Path, headline: Headline, good: Sequence[float], bad: Sequence[float], apart: float = 0.5
) -> dict[str, list[Path]]:
    """Write two groups of two seeds, whose scores differ by ``apart``."""
    ends = {"good": (good, 0.1), "bad": (bad, 0.5)}
    return {
        name: [
            write_run(
                root / name / str(seed), headline, [x + apart * seed for x in scores], seed=seed, lr=lr,
                clients=[scores[-1], scores[0]],
            )
            for seed in (0, 1)
        ]
        for name, (scores, lr) in ends.items()
    }  # fmt: skip


def text_of(groups: Mapping[str, Sequence[Path]], target: float | None = None) -> str:
    """Return the report as Markdown, without figures."""
    made = make_groups({name: [load_run(each) for each in paths] for name, paths in groups.items()})
    material = make_material(made, target)
    return to_markdown(compose(material, picture_names(material.headline)), "plots")


def row(text: str, caption: str, group: str) -> list[str]:
    """Return a group's first row in the table below a caption."""
    lines = text.split(caption, 1)[1].splitlines()
    line_of_group = next(line for line in lines if line.startswith(f"| {group} |"))
    return [cell.strip() for cell in line_of_group.split("|")[2:-1]]


def test_the_lowest_error_is_the_best(tmp_path: Path) -> None:
    text = text_of(two_groups(tmp_path, MAE, GOOD, BAD))
    assert "Level a: good is lowest with 40.25 (40.00–40.50). bad with 70.25 (70.00–70.50) is higher, by 30.00." in text
    final = row(text, "Test mean absolute error after the last round, by name of the level", "good")
    assert final == ["**40.25**<br>40.00–40.50", "**41.25**<br>41.00–41.50"]
    # 1.05 times 70.25, the best score of the worse group
    assert "The target is a validation mean absolute error of 73.76: 1.05 times the best mean absolute error of" in text
    assert "of the group whose best mean absolute error is highest." in text
    spent = "Spent by the first validation of the global model at 73.76 or less."
    assert row(text, spent, "good")[:2] == ["1", "1.00 MB"]
    assert row(text, spent, "bad")[:2] == ["3", "3.00 MB"]
    assert row(text, "Mean absolute error on the clients' test data after the last round.", "good") == [
        *("40.25<br>40.00–40.50", "40.25<br>40.00–40.50", "0.2500", "42.25<br>42.00–42.50", "100.0"),
    ]
    assert "the group whose thick line is lowest is best" in text
    assert "Look at the right: if a line rises there, some clients have a bad mean absolute error" in text
    assert "## To a target mean absolute error" in text
    assert "ccurac" not in text
    assert not re.search(r"\d %", text.replace("33 %", ""))  # except for the chance that orders arise at random


@pytest.mark.parametrize("stage", ["test", "val"])
def test_a_diverged_run_is_named_and_moves_no_other_score(tmp_path: Path, stage: str) -> None:
    folders = {name: [write_run(tmp_path / name, MAE, scores, lr=lr)] for lr, (name, scores) in enumerate(RUNS.items())}
    if stage == "val":
        for path in (folder / "metrics.csv" for (folder,) in folders.values()):
            table = pd.read_csv(path, keep_default_na=False)
            table.loc[:, table.columns.str.startswith("test/")] = ""
            table.to_csv(path, index=False)
    text = text_of(folders)
    caption = f"{'Test' if stage == 'test' else 'Validation'} mean absolute error after the last round, by name of"
    assert row(text, caption, "good") == ["40.00", "41.00"]
    assert row(text, caption, "lost") == ["–", "–"]
    kind = "test" if stage == "test" else "validation"
    assert (
        f"Not a number: {kind} mean absolute error after the last round of the global model, level a and level b "
        "in lost of lost, so lost has no score there."
    ) in text
    assert ("Not every run was tested after its last round" in text) == (stage == "val")


def test_an_infinite_score_leaves_the_page_valid(tmp_path: Path) -> None:
    ends = {"good": GOOD, "early": [float("inf"), 50.0, 45.0], "late": [60.0, 50.0, float("inf")]}
    groups = {name: [write_run(tmp_path / name, MAE, each, lr=lr)] for lr, (name, each) in enumerate(ends.items())}
    for (folder,) in groups.values():
        write_levels(folder, {"a": 1000, "b": 100})
    html = write_report(groups, tmp_path / "out").read_text()
    texts = [unescape(text) for text in re.findall(r'data-lines="([^"]*)"', html)]
    found = [json.loads(text, parse_constant=pytest.fail) for text in texts]
    over = next(each for each in found if each["x"] == "Rounds done")
    lines = {line["group"]: (line["xs"], line["ys"]) for line in over["lines"] if line["panel"] == 0}
    assert lines == {"good": ([1, 2, 3], [60, 50, 40]), "early": ([2, 3], [50, 45]), "late": ([1, 2], [60, 50])}


def test_a_client_without_a_number_leaves_no_mean_of_the_others(tmp_path: Path) -> None:
    folders = {name: [write_run(tmp_path / name, MAE, GOOD, clients=[1.0, 2.0])] for name in ("good", "lost")}
    path = folders["lost"][0] / "clients.csv"
    path.write_text(path.read_text().replace("4.0\n", "nan\n"))
    text = text_of(folders)
    means = [row(text, "Mean absolute error on the clients' test data", name)[-1] for name in folders]
    assert means == ["3.000", "–"]


def test_the_highest_r2_is_the_best_and_may_be_negative(tmp_path: Path) -> None:
    groups = two_groups(tmp_path, R2, [-2.0, 0.5], [-4.0, -0.5], apart=0.03125)
    text = text_of(groups)
    assert "good is highest with 0.5156 (0.5000–0.5312). bad with -0.4844 (-0.5000–-0.4688) is lower, by 1.000." in text
    target = "The target is a validation R² of -0.5086: 1.05 times the best R² of the group whose best R² is lowest."
    assert target in text
    at = "Spent by the first validation of the global model at -0.5086 or more."
    assert row(text, at, "good")[0] == row(text, at, "bad")[0] == "2"
    assert "values of R² of single clients" not in text
    (groups["bad"][0] / "clients.csv").unlink()
    (groups["bad"][1] / "clients.csv").unlink()
    assert "No clients.csv in bad: the values of R² of single clients are unknown." in text_of(groups)


def test_report_figures_are_named_after_the_headline(tmp_path: Path) -> None:
    write_report(two_groups(tmp_path, MAE, GOOD, BAD), tmp_path / "out", target=55.0)
    names = {path.stem for path in (tmp_path / "out/plots").iterdir()}
    assert names == {"mae_over_rounds", "mae_over_bytes", "mae_of_clients"}
    html, text = ((tmp_path / "out" / name).read_text() for name in ("report.html", "report.md"))
    assert "ccurac" not in html + text
    assert "The target is a validation mean absolute error of 55.00, as asked for." in text
    summary = pd.read_csv(tmp_path / "out/summary.csv").set_index(["group", "part"])
    ends = ["val_mae", "val_mae_low", "val_mae_high"]
    assert [float(summary[name]["good", "b"]) for name in ends] == [41.25, 41.0, 41.5]
    assert float(summary["test_mae"]["bad", "global"]) == 70.25
    svg = (tmp_path / "out/plots/mae_over_rounds.svg").read_text()
    assert ">Mean absolute error<" in svg


def test_figures_show_scores_without_percent_conversion(tmp_path: Path) -> None:
    paths = two_groups(tmp_path, R2, [-2.0, 0.5], [-4.0, -0.5])
    groups = make_groups({name: [load_run(each) for each in folders] for name, folders in paths.items()})
    figures = draw_all(make_material(groups, None), group_styles(list(paths)))
    assert set(figures) == {"r2_over_rounds", "r2_over_bytes", "r2_of_clients"}
    lines = figures["r2_over_rounds"].figure.axes[0].get_lines()
    means = [line.get_ydata().tolist() for line in lines if str(line.get_gid()).endswith("mean")]  # type: ignore[union-attr]
    assert means == [[-1.75, 0.75], [-3.75, -0.25]]
    ax = figures["r2_of_clients"].figure.axes[0]
    good, bad = (line.get_xydata().tolist() for line in ax.get_lines())  # type: ignore[union-attr]
    # Two clients in each of two seeds; each line spans the range of all scores, which sub-models extend to -8 to 1.
    assert good == [[-8.0, 0.0], [-2.0, 50.0], [0.5, 100.0], [1.0, 100.0]]
    assert bad == [[-8.0, 0.0], [-4.0, 50.0], [-0.5, 100.0], [1.0, 100.0]]
    assert ax.get_xlim()[0] == -8.0
    assert ax.get_xlim()[1] > 1.0


def test_an_error_target_is_reached_from_above(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", PERPLEXITY, [9.0, 5.0, 6.0, 4.0]))
    assert [amount_to_reach(run, target, ROUNDS) for target in (9.5, 9.0, 5.5, 5.0, 4.0, 3.9)] == [1, 1, 2, 2, 4, None]


@pytest.mark.parametrize("target", [float("nan"), float("inf")])
def test_an_impossible_target_is_refused(target: float, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", MAE, GOOD)
    with pytest.raises(ConfigurationError, match="Expected --target, a mean absolute error, to be finite but got"):
        write_report({"x": [run]}, tmp_path / "out", target=target)


def test_runs_with_different_headlines_are_refused(tmp_path: Path) -> None:
    runs = {"x": [write_run(tmp_path / "x", MAE, GOOD)], "y": [write_run(tmp_path / "y", R2, [0.5] * 3)]}
    with pytest.raises(ConfigurationError, match=r"runs with the same score but got mae in .*x and r2 in .*y$"):
        write_report(runs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_without_headline_values_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "x", MAE, GOOD)
    (run / FILE).write_bytes(R2.to_json())
    with pytest.raises(ConfigurationError, match=r"Expected a finite validation R² in .*metrics\.csv but got none"):
        write_report({"x": [run]}, tmp_path / "out")


def test_sentences_order_errors_from_lowest_to_highest() -> None:
    def spread(mean: float, n: int = 2) -> Spread:
        return Spread(mean, mean - 0.5, mean + 0.5, n)

    sentence = level_sentence({"x": spread(3.0), "y": spread(5.0), "z": spread(2.75)}, MAE)
    assert sentence == (
        "z with 2.750 (2.250–3.250) and x with 3.000 (2.500–3.500) cannot be distinguished: the spreads overlap. "
        "y with 5.000 (4.500–5.500) is higher than z and x."
    )
    assert level_sentence({"x": spread(3.0, n=5), "y": spread(9.0, n=5)}, MAE) == (
        "x is lowest with 3.000 ± 0.5000. y with 9.000 ± 0.5000 is higher, by 6.000."
    )
