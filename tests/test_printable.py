"""Text from other sources is shown as one printable line."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from rich.table import Table

from hetfl.cli.errors import condense
from hetfl.cli.one_line import _Stderr
from hetfl.data import CSVData, ImageFolder
from hetfl.display.formats import cell
from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.printable import printable
from hetfl.report.rendering import escape
from hetfl.wire import MalformedPayload
from hetfl.wire.malformed import Reason

FORGED = "x\nhetfl: all is well\r\x1b[2J\u202egnp\u2028\x00"
SHOWN = r"x\nhetfl: all is well\r\x1b[2J\u202egnp\u2028\x00"


@settings(deadline=None)
@given(text=st.text(), longest=st.integers(4, 400))
def test_any_text_is_one_printable_line_of_bounded_length(text: str, longest: int) -> None:
    line = printable(text, longest)
    assert line.isprintable()
    assert len(line) <= longest
    assert printable(line, longest) == line


@pytest.mark.parametrize("text", ["plain", "C:\\new\\table", "größer 日本語 ✓", "'quoted' \"text\" {x} %s"])
def test_printable_text_of_any_script_is_unchanged(text: str) -> None:
    assert printable(text) == text


def test_a_lone_surrogate_becomes_writable_text() -> None:
    assert printable("\udcff").encode() == rb"\udcff"


@pytest.mark.parametrize("error", [ConfigurationError, RefusedUpdate, lambda text: MalformedPayload(Reason.SIZE, text)])
def test_every_error_message_is_one_line(error: type[ValueError]) -> None:
    assert str(error(FORGED)).endswith(SHOWN)
    assert len(str(error("y" * 10**6))) <= 2000


def test_the_command_line_reports_an_error_in_one_line() -> None:
    assert condense("a\x1b[31mb\n  c") == r"a\x1b[31mb; c"
    assert len(condense("z" * 10**6)) == 2000


def test_log_messages_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    _Stderr().emit(logging.LogRecord("hetfl", logging.INFO, "", 0, "node %s", (FORGED,), None))
    assert capsys.readouterr().err == f"node {SHOWN}\n"


def test_table_cells_are_escaped_and_one_line() -> None:
    table, output = Table(), io.StringIO()
    table.add_column("kind", no_wrap=True)
    table.add_row(cell("[link=file:///etc]phone[/link]\x1b[2J\nbox"))
    Console(file=output, width=120).print(table)
    assert r"[link=file:///etc]phone[/link]\x1b[2J\nbox" in output.getvalue()


def test_names_do_not_break_rows_of_report_tables() -> None:
    assert "\n" not in escape("level\n| a | 100 % |")


def test_names_of_files_and_classes_in_an_error_are_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "cat\nclass dog: \x1b[2J"
    for part in (folder, tmp_path / "test" / "bird"):
        part.mkdir(parents=True)
        Image.fromarray(torch.zeros(4, 4, 3, dtype=torch.uint8).numpy()).save(part / "a.png")
    with pytest.raises(ConfigurationError, match=r"cat\\+nclass dog: \\+x1b\[2J") as raised:
        ImageFolder(root=str(tmp_path), num_clients=1).load()
    assert str(raised.value).isprintable()
    (folder / "b\n.png").write_bytes(b"no image")
    folder.rename(tmp_path / "train" / "bird\n")
    (tmp_path / "test" / "bird").rename(tmp_path / "test" / "bird\n")
    with pytest.raises(ConfigurationError, match=r"bird\\n/b\\n\.png but decoding it failed") as raised:
        ImageFolder(root=str(tmp_path), num_clients=1).load()
    assert str(raised.value).isprintable()


def test_names_of_columns_in_an_error_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a\nb.csv"
    path.write_text('"x\ny",z\n' + "1,2\n" * 20)
    with pytest.raises(ConfigurationError, match=r"a\\nb\.csv") as raised:
        CSVData(path=str(path), target="class").load()
    assert str(raised.value).isprintable()
