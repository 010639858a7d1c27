"""The short help: it imports little, fits a terminal, and names verbs and settings that exist."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from hetfl.cli import MODULES, OF_RUNS, FederatedCLI, main
from hetfl.cli.helping import COLUMNS, OF_SETTINGS, SETTINGS, VERBS, asked_for_help, of_all, of_verb
from hetfl.cli.parser import MARKUP
from hetfl.compare.resolving import resolve
from hetfl.export import FORMATS

VALUES = {
    "--data": "hetfl.data.Digits",
    "--data.partitioner": "hetfl.data.IID",
    "--model": "hetfl.FedAvg",
    "--model.net": "hetfl.models.ConvNet",
    "--model.levels": "{a: {width: 1}}",
    "--model.assignment": "hetfl.fleet.Dynamic",
    "--model.parts": "hetfl.parts.Prefix",
    "--model.aggregator": "hetfl.aggregators.SampleMean",
    "--model.fleet": "hetfl.fleet.SameDevice",
    "--model.local.optimizer.lr": "0.1",
    "--model.uplink.compressor": "hetfl.compression.Identity",
    "--model.downlink": "hetfl.downlink.Downlink",
    "--model.executor": "hetfl.local.Stacked",
    "--trainer.logger.name": "mine",
}


def test_the_help_lists_every_verb_in_a_line() -> None:
    assert set(VERBS) == {*FederatedCLI.subcommands(), *MODULES, *OF_RUNS}
    lines = of_all().splitlines()
    assert len(lines) < 40
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(VERBS)


@pytest.mark.parametrize("verb", OF_SETTINGS)
def test_the_help_of_a_verb_fits_a_terminal(verb: str) -> None:
    text = of_verb(verb)
    assert asked_for_help([verb, "-c", "demo", "--help"]) == text
    assert max(map(len, [*text.splitlines(), *of_all().splitlines()])) <= COLUMNS
    assert len(text.splitlines()) < 50


def test_the_help_of_export_lists_every_format() -> None:
    (line,) = (line for line in of_verb("export").splitlines() if "--format" in line)
    assert {*FORMATS, "peft"} <= set(re.findall(r"\w+", line))


def test_settings_of_the_help_exist() -> None:
    options = [option.split()[0] for settings in SETTINGS.values() for option in settings]
    given = [f"{option}={VALUES.get(option, '3')}" for option in options if option != "--print_config"]
    assert "max_epochs: 3" in resolve(["-c", "demo", *given], [3])[3]


def test_help_is_printed_without_torch() -> None:
    script = (
        "import sys; from hetfl.cli import main; main(sys.argv[1:]); assert not {'torch', 'lightning'} & {*sys.modules}"
    )
    for args in ([], ["-h"], ["fit", "--help"], ["resume", "--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)
        assert re.match(r"usage: hetfl |hetfl \d", done.stdout)


def test_a_misspelt_verb_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fti", "-c", "demo"])
    assert "Expected a verb, which hetfl --help lists, but got 'fti': did you mean 'fit'?" in capsys.readouterr().err


def test_all_settings_are_listed_without_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["describe", "--help-all"])
    text = capsys.readouterr().out
    assert "--trainer.max_epochs" in text
    assert not MARKUP.search(text)
    assert MARKUP.sub(r"\1", "the :paramref:`~a.Trainer.x` of :class:`B`") == "the a.Trainer.x of B"
