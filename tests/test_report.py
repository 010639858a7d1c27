"""``hetfl report`` on hand-written runs: the content of its files, and refused runs."""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd

from hetfl.analysis import load_run
from hetfl.report import write_report
from hetfl.runs.metrics_file import MetricsFile
from tests.report_cases import ROUNDS, cells, settings, text_of, two_groups, write_clients, write_levels, write_run


class Page(HTMLParser):
    """The files that a page loads, its tags, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.text = html
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_report_files_are_written_and_the_page_loads_no_other_files(tmp_path: Path) -> None:
    html = write_report(two_groups(tmp_path), tmp_path / "out")
    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    plots = {
        f"plots/accuracy_over_{x}.{suffix}"
        for x in ("rounds", "bytes", "flops", "seconds")
        for suffix in ("png", "svg", "csv")
    }
    assert made == {"report.html", "report.md", "summary.csv"} | plots
    text = html.read_text()
    page = Page(text)
    links = [link for link in page.loads if not link.startswith("#")]
    assert sorted(links) == sorted(path for path in plots if path.endswith(".csv"))  # followed only by a click
    assert not {"img", "image", "link", "iframe", "object"} & set(page.tags)
    assert page.tags.count("svg") == 4
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    assert len(text) < 1_000_000
    links = re.findall(r"\]\(([^)]+)\)", (tmp_path / "out/report.md").read_text())
    assert len(links) == 4
    assert all((tmp_path / "out" / link).is_file() for link in links)


def test_equal_runs_give_reports_of_equal_bytes(tmp_path: Path) -> None:
    groups = two_groups(tmp_path, levels="a")
    for out in ("one", "two"):
        write_report(groups, tmp_path / out)
    for path in (path for path in (tmp_path / "one").rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path.name


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    names = ("<script>alert(1)</script>", '"><img src=x onerror=y>', "a|b", "$x_{1}$", "_under", "&lt;", "![](x)")
    groups = {name: [write_run(tmp_path / str(i), levels="a", config=settings(lr=i))] for i, name in enumerate(names)}
    page = Page(write_report(groups, tmp_path / "out").read_text())
    assert page.tags.count("script") == 1  # the page's own; no other may run
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in page.text
    assert "alert(1)" not in script
    assert "img" not in page.tags
    assert set(names) <= set(page.words)
    svg = (tmp_path / "out/plots/accuracy_over_rounds.svg").read_text()
    assert "<script" not in svg
    assert all(escape(name, quote=False) in svg for name in names)
    markdown = (tmp_path / "out/report.md").read_text()
    assert all(len(row) == 2 for row in cells(markdown, "by name of the level"))
    assert not re.search(r"(?<!\\)<(?!br>)", markdown)
    assert dict.fromkeys(pd.read_csv(tmp_path / "out/summary.csv")["group"]) == dict.fromkeys(names)


def test_tables_show_the_values_of_the_runs(tmp_path: Path) -> None:
    text = text_of(two_groups(tmp_path), target=0.5)
    final = cells(text, "Test accuracy after the last round, by name of the level")
    assert final[0] == ["group", "a", "b", "c"]
    assert final[1] == [
        "high",
        *(f"**{mean}.50 %**<br>{mean}.00–{mean + 1}.00 %" for mean in (90, 80, 70)),
    ]
    spent = cells(text, "Spent by the first validation of the global model at 50.00 % or more")
    # high reaches 0.90 · r / 8 ≥ 0.5 and 0.91 · r / 8 ≥ 0.5 in round 5, low with 0.70 and 0.71 in round 6
    assert spent[1] == ["high", "5", "5.00 MB", "10.0 GFLOP", "15 s"]
    assert spent[2] == ["low", "6", "6.00 MB", "12.0 GFLOP", "18 s"]
    budgets = cells(text, "Validation accuracy at the same uploaded bytes")
    labels = [[share, name] for share in ("¼: 2.00 MB", "½: 4.00 MB", "all: 8.00 MB") for name in ("high", "low")]
    assert [row[:2] for row in budgets[1:]] == labels
    assert budgets[1][2].startswith("**22.62 %**")  # (0.90 + 0.91) / 2 · 2 / 8
    differing = cells(text, "Settings that differ")
    assert differing == [["setting", "high", "low"], ["model.lr", "0.1", "0.5"]]


def test_only_differences_without_overlap_are_claimed(tmp_path: Path) -> None:
    apart = text_of(two_groups(tmp_path))
    assert "Level a: high is highest with 90.50 % (90.00–91.00). low with 70.50 % (70.00–71.00) is lower, by" in apart
    assert "would not overlap in 33 % of comparisons, by chance alone" in apart
    near = text_of(two_groups(tmp_path / "near", gap=0.005))
    assert "is highest with" not in near
    assert near.count("cannot be distinguished: the spreads overlap") == 3
    alone = text_of(two_groups(tmp_path / "alone", seeds=[0]))
    assert "is highest with" not in alone
    assert "Level a: high has 90.00 % and low has 70.00 %. There is only one run each." in alone
    assert "by chance alone" not in alone


def test_levels_of_nearly_equal_cost_share_a_column(tmp_path: Path) -> None:
    groups = two_groups(tmp_path)
    for name, sizes in (("high", {"a": 1000, "b": 500, "c": 100}), ("low", {"a": 520, "b": 110, "c": 10})):
        for folder in groups[name]:
            write_levels(folder, sizes)
    write_report(groups, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    rows = cells(text, "Test accuracy of levels of nearly the same parameters")
    assert [row[0] for row in rows] == ["level", "a", "b / a", "c / b", "c"]
    assert (rows[1][2], rows[4][1]) == ("–", "–")
    assert "b: width 0.5, 500 parameters" in rows[2][1]
    assert "a: width 0.5, 520 parameters" in rows[2][2]
    assert "Level a, 1.00 k parameters: only high has such a level" in text
    assert "Level b / a, 500–520 parameters: high is highest with 80.50 %" in text
    assert (tmp_path / "out/plots/accuracy_over_size.svg").is_file()


def test_clients_and_heads_have_separate_figures(tmp_path: Path) -> None:
    groups = {"g": [write_run(tmp_path / "g/0", heads=("head_1", "head_2"))]}
    write_clients(groups["g"][0], [1.0, 0.5, None, 0.0])
    assert load_run(groups["g"][0]).levels == ("a", "b", "c")
    assert load_run(groups["g"][0]).heads == ("head_1", "head_2")
    write_report(groups, tmp_path / "out")
    heads = (tmp_path / "out/plots/accuracy_of_heads.svg").read_text()
    assert ">head 1<" in heads
    assert ">a<" not in heads
    assert ">head 1<" not in (tmp_path / "out/plots/accuracy_over_rounds.svg").read_text()
    row = cells((tmp_path / "out/report.md").read_text(), "Accuracy on the clients' test data")[1]
    assert row == ["g", "80.00 %", "78.00 %", "10.00 %", "40.00 %", "50.00 %"]
    assert (tmp_path / "out/plots/accuracy_of_clients.png").is_file()
    parts = pd.read_csv(tmp_path / "out/summary.csv")["part"].tolist()
    assert parts == ["global", "a", "b", "c", "head_1", "head_2"]


def test_scores_of_clients_after_more_rounds_are_left_out(tmp_path: Path) -> None:
    groups = {"long": [write_run(tmp_path / "long")], "short": [write_run(tmp_path / "short", rounds=4, tested=False)]}
    write_clients(groups["long"][0], [1.0, 0.5])
    write_report(groups, tmp_path / "out", unfinished=True)
    text = (tmp_path / "out/report.md").read_text()
    assert cells(text, "on the clients' test data after round 4")[1][-1] == "–"
    assert "clients.csv of long is left out: it is of the last round, after more training." in text
    assert not (tmp_path / "out/plots/accuracy_of_clients.png").exists()


def test_costs_that_no_run_counts_are_left_out_with_a_note(tmp_path: Path) -> None:
    costs = {"comm/up_bytes_total": 1e6, "sim/seconds_total": 0.0}
    groups = {"g": [write_run(tmp_path / "g/0", per_round=costs)]}
    out = tmp_path / "out"
    (out / "plots").mkdir(parents=True)
    (out / "plots/accuracy_over_flops.png").write_bytes(b"an earlier report's")
    write_report(groups, out)
    text = (out / "report.md").read_text()
    assert "Accuracy over computed FLOPs is left out for all groups: compute/flops\\_total is missing or 0." in text
    assert "Accuracy over simulated seconds is left out for all groups" in text
    assert sorted(path.name for path in (out / "plots").glob("*.png")) == [
        "accuracy_over_bytes.png",
        "accuracy_over_rounds.png",
    ]


def test_a_cost_counted_by_one_group_is_shown_for_that_group(tmp_path: Path) -> None:
    groups = {"with": [write_run(tmp_path / "w/0")], "without": [write_run(tmp_path / "v/0", per_round={})]}
    text = text_of(groups)
    assert "Accuracy over uploaded bytes is left out for without" in text
    assert "accuracy_over_bytes.png" in text
    assert [row[1] for row in cells(text, "Validation accuracy at the same uploaded bytes")] == ["group", *["with"] * 3]


def test_untested_runs_are_reported_by_their_validation(tmp_path: Path) -> None:
    text = text_of({"g": [write_run(tmp_path / "g/0", tested=False)]})
    assert "Not every run was tested after its last round" in text
    assert "Validation accuracy after the last round, by name of the level" in text
    assert "Test accuracy" not in text


def test_a_test_of_an_earlier_model_is_not_reported_as_final(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "g/0", rounds=4)
    MetricsFile(folder / "metrics.csv").add(ROUNDS - 1, {"val/accuracy": 0.95, "val/accuracy_by_level/a": 0.95})
    assert "Not every run was tested after its last round" in text_of({"g": [folder]})


def test_a_target_that_is_not_reached_is_reported(tmp_path: Path) -> None:
    spent = cells(text_of(two_groups(tmp_path), target=0.905), "at 90.50 % or more")
    assert spent[1] == ["high", *["reached by 1 of 2 runs"] * 4]
    assert spent[2] == ["low", *["not reached"] * 4]
