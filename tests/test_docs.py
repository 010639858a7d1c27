"""README and docs/: commands parse, Python blocks run, links lead somewhere, and the contents list every page."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from hetfl.cli import main
from hetfl.cli.config_files import packaged_names
from hetfl.compare.plan import parse_contenders
from tests.demo_cases import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("tutorials/*.md"))]
PROJECT = ("project.yaml", "run.yaml", "RUN/config.yaml", "visits.csv")
"""Names of configurations of the reader's own."""
SETTING_VERBS = ("fit", "describe", "data", "test")
VERBS = {*SETTING_VERBS, "resume", "export", "compare", "report", "flower", "init", "configs", "unlearn", "validate"}
RUNNING = ("README.md", "tutorials/own_data.md", "tutorials/own_net.md")
"""Pages whose Python blocks run as they are, one after the other."""
PLACEHOLDER = re.compile(r"…|\.\.\.|[$]|\bVERB\b|\bNAME\b| -c$")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands_in(text: str) -> list[str]:
    """Return the commands of hetfl in code blocks and in code within a line."""
    blocks = "\n".join(re.findall(r"^```(?:sh)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    lines = [line.strip() for line in blocks.splitlines()]
    inline = re.findall(r"`(hetfl [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("\n", " "))
    commands = [line for line in lines if line.startswith("hetfl ")] + inline
    return [re.sub(r"\s# .*| #$", "", command) for command in commands if not PLACEHOLDER.search(command)]


COMMANDS = sorted({command for page in PAGES for command in commands_in(text_of(page))})


def words_of(command: str) -> list[str]:
    return shlex.split(command, comments=True)[1:]


def files_of(words: list[str]) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("-c", "--config")]


def test_verbs_and_configurations_exist() -> None:
    assert len(COMMANDS) > 90
    for command in COMMANDS:
        words = words_of(command)
        assert not words or words[0] in VERBS or words[0].startswith("--"), command
        files = files_of(words)
        for number, word in enumerate(words[:-1]):
            if words[0] == "compare" and word == "-r":
                files += words[number + 1].partition("=")[2].split(",")
        for name in files:
            known = name.removeprefix("configs/").removesuffix(".yaml")
            assert known in packaged_names() or name in PROJECT or name == "devices.csv", command


@pytest.mark.slow
def test_settings_of_commands_parse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["init"])
    for command in COMMANDS:
        verb, *words = words_of(command) or [""]
        if verb not in SETTING_VERBS or "--print_config" in words or any(".help" in word for word in words):
            continue
        given = ["project.yaml" if word in PROJECT else re.sub("^configs/", f"{ROOT}/configs/", word) for word in words]
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([verb, *given, "--print_config"])
        assert stop.value.code in (0, None), f"{command}: {capsys.readouterr().err}"


def test_comparisons_name_their_runs() -> None:
    for words in map(words_of, COMMANDS):
        if words and words[0] == "compare" and "-r" in words:
            contenders = [words[i + 1] for i, word in enumerate(words) if word == "-r"]
            files = [each.replace("project.yaml", "demo") for each in contenders]
            if not any("configs/" in each for each in files):
                assert len(parse_contenders(files)) == len(contenders)


@pytest.mark.parametrize("name", RUNNING)
def test_python_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = ROOT / name if name == "README.md" else DOCS / name
    names: dict[str, Any] = {"__name__": "docs"}
    blocks = re.findall(r"^```python\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        quick = block.replace("max_epochs=20", "max_epochs=1, logger=False, enable_checkpointing=False")
        exec(compile(quick, name, "exec"), names)  # noqa: S102


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_yaml_blocks_are_yaml(page: Path) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL):
        assert yaml.safe_load(block)


def slugs_of(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return {*plain, *re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)):
        if target.startswith(("http", "mailto")):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        if anchor:
            assert anchor in slugs_of(text_of(path)), target


def test_every_page_is_in_the_contents() -> None:
    trees = re.findall(r"```\{toctree\}\n(.*?)```", text_of(DOCS / "index.md"), re.DOTALL)
    listed = {line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")}
    names = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES if page.is_relative_to(DOCS)}
    assert listed == names - {"index"} | {"api/index", "notebooks/index"}


def test_the_drawing_is_that_of_its_script(tmp_path: Path) -> None:
    names = runpy.run_path(str(DOCS / "pictures.py"))
    names["main"](["--out", str(tmp_path)])
    assert (tmp_path / "submodels.svg").read_bytes() == (DOCS / "images/submodels.svg").read_bytes()


def test_the_faq_has_thirty_questions_and_each_is_asked_once() -> None:
    questions = re.findall(r"^### (.*)$", text_of(DOCS / "faq.md"), re.MULTILINE)
    assert len(questions) == len(set(questions)) >= 30
