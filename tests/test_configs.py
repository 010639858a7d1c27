"""Packaged configurations: found by name from any folder, listed, printed, and described by their first line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hetfl.cli import main
from hetfl.cli.config_files import config_file, packaged_file, packaged_names
from hetfl.cli.configs_command import listing
from hetfl.compare.plan import parse_contenders
from hetfl.compare.resolving import resolve
from hetfl.errors import ConfigurationError
from tests.demo_cases import CONFIGS, FEW, refused

LONGEST_LINE = 120
VENUE = re.compile(r"\([A-Z]\w+ et al\., [A-Z]\w+ 20\d\d\)")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_names_are_the_files_of_the_configs_folder() -> None:
    files = {file.relative_to(CONFIGS).as_posix() for file in CONFIGS.rglob("*.yaml")}
    assert {f"{name}.yaml" for name in packaged_names()} == files


@pytest.mark.parametrize("name", packaged_names())
def test_the_first_line_describes_the_configuration(name: str) -> None:
    file = packaged_file(name)
    assert file is not None
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"# \S.*\.", first)
    assert len(first) <= LONGEST_LINE
    if name.startswith("method/"):
        assert VENUE.search(first)


@pytest.mark.parametrize("name", [name for name in packaged_names() if name.startswith("method/")])
def test_every_method_runs(name: str, tmp_path: Path) -> None:
    sizes = [*FEW, "--model.local.epochs=2", "--model.net.hidden=[10,10,10,10]"]  # stragglers do one epoch
    short = ["--trainer.max_epochs=2", "--trainer.limit_val_batches=0", "--final_test=false", "--plots=false"]
    short += ["--model.executor=hetfl.local.Sequential"]  # the slow test of the files has the default executor
    main(["fit", "-c", "base", "-c", name, "-c", "data/digits", *sizes, *short, f"--trainer.logger.root={tmp_path}"])
    (metrics,) = tmp_path.rglob("metrics.csv")
    rows = metrics.read_text().splitlines()
    column = rows[0].split(",").index("train/loss")
    assert all(0 < float(row.split(",")[column]) < 10 for row in rows[1:])
    assert len(rows) == 3


def test_a_name_means_the_packaged_file_with_or_without_its_suffix() -> None:
    for name in ("method/fedprox", "method/fedprox.yaml"):
        assert Path(config_file(name)).read_bytes() == (CONFIGS / "method" / "fedprox.yaml").read_bytes()


def test_a_users_file_with_the_same_name_takes_precedence(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("seed_everything: 1\n")
    assert config_file("demo") == "demo"
    (tmp_path / "base.yaml").write_text("seed_everything: 1\n")
    assert config_file("base.yaml") == "base.yaml"
    assert config_file("base") == str(packaged_file("base"))
    (tmp_path / "data" / "digits").mkdir(parents=True)  # a folder is not a configuration
    assert config_file("data/digits") == str(packaged_file("data/digits"))


def test_names_do_not_appear_in_the_configuration_of_a_run() -> None:
    by_name, by_path = (
        resolve(["-c", f"{prefix}base", f"--config={prefix}data/digits", "-c", f"{prefix}method/fedprox.yaml"], [0])
        if not prefix
        else resolve([f"-c={prefix}{name}.yaml" for name in ("base", "data/digits", "method/fedprox")], [0])
        for prefix in ("", f"{CONFIGS}/")
    )
    assert by_name == by_path
    assert str(CONFIGS) not in by_name[0]


def test_a_file_beside_a_configuration_is_still_found(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "data.yaml").write_text("class_path: hetfl.data.Digits\ninit_args: {num_clients: 7}\n")
    (folder / "run.yaml").write_text("data: data.yaml\n")
    assert "num_clients: 7" in resolve(["-c", "base", "-c", "mine/run.yaml"], [0])[0]


def test_text_is_still_a_configuration() -> None:
    assert "max_epochs: 30" in resolve(["-c", "demo", "-c", "{trainer: {max_epochs: 30}}"], [0])[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("fedprx", "'fedprx': there is no such file; the nearest names are method/fedprox"),
        ("configs/method/fedprox.yml", "the nearest names are method/fedprox"),
        ("xyzzy", "'xyzzy': there is no such file\n"),
        ("../secret", "there is no such file"),
        ("", "'': there is no such file"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(
    given: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, ["fit", "-c", given])


def test_a_misspelt_file_is_refused_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("trainer: {max_epochs: 1}\n")
    assert "the nearest names are mine.yaml, " in refused(capsys, ["fit", "-c", "mien.yaml"])


@pytest.mark.parametrize("verb", ["validate", "test", "describe", "data", "export"])
def test_every_subcommand_accepts_names(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, [verb, "-c", "demo", "-c", "method/fedprx"])
    assert "the nearest names are method/fedprox" in error


def test_compare_accepts_names() -> None:
    assert parse_contenders(["a=demo,method/fedprox"])[0].files == ("demo", "method/fedprox")
    with pytest.raises(ConfigurationError, match="run a: .*'dmo'.*; the nearest name is demo"):
        parse_contenders(["a=dmo"])


def test_the_list_is_plain_and_aligned_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line] == list(packaged_names())
    column = lines[0].index("Settings")
    assert all(line[column - 1] == " " != line[column] for line in lines if line)
    folders = [
        {line.split()[0].rpartition("/")[0] for line in group.splitlines()} for group in listing(None).split("\n\n")
    ]
    assert all(len(group) == 1 for group in folders)
    assert len(folders) == len(set.union(*folders))


def test_the_list_keeps_to_the_width_of_a_terminal() -> None:
    lines = listing(90).splitlines()
    assert max(map(len, lines)) <= 90
    assert " ".join(" ".join(lines).split()) == " ".join(listing(None).split())


def test_a_configuration_is_printed_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs", "method/fedprox"])
    assert capsys.readouterr().out == (CONFIGS / "method" / "fedprox.yaml").read_text(encoding="utf-8")


def test_an_unknown_configuration_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'methods/fedprox'; the nearest names are method/fedprox" in refused(capsys, ["configs", "methods/fedprox"])
