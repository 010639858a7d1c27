"""What a run folder says of its run beside the settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning import Trainer

from hetfl.analysis import load_run
from hetfl.errors import ConfigurationError
from hetfl.runs import RunFolder
from hetfl.runs.about import FILE, UNKNOWN, about_in
from hetfl.started import COMMAND
from tests.conftest import small_module


def test_a_run_notes_its_first_start_and_a_continued_run_keeps_it(
    fit: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMMAND, "hetfl compare -r a=b")
    folder = Path(str(fit(small_module(), rounds=1, limit_val_batches=0).log_dir))
    about = about_in(folder)
    assert about.command == "hetfl compare -r a=b"
    assert about.classes == 10
    assert (about.train_samples or 0) + (about.val_samples or 0) + (about.test_samples or 0) == 1797
    assert about.version.startswith("hetfl ")
    assert about.started
    assert "core" in about.machine
    assert load_run(folder).chance == 0.1
    first = (folder / FILE).read_bytes()
    monkeypatch.setenv(COMMAND, "another")
    fit(small_module(), rounds=1, limit_val_batches=0, logger=RunFolder(folder=str(folder)))
    assert (folder / FILE).read_bytes() == first


def test_a_folder_without_the_file_is_unknown(tmp_path: Path) -> None:
    assert about_in(tmp_path) == UNKNOWN


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        json.dumps({"stranger": 1}),
        json.dumps({"version": 1}),
        json.dumps({"version": "two\nlines"}),
        json.dumps({"classes": -1}),
        json.dumps({"classes": True}),
        json.dumps({"val_samples": 1.5}),
        json.dumps({"command": "x" * 4001}),
    ],
)
def test_an_invalid_file_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ConfigurationError, match="Expected what is known of a run in .*about.json but got: ") as caught:
        about_in(tmp_path)
    assert "\n" not in str(caught.value)
