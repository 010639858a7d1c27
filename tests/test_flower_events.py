"""Events: one printable line each, shown and kept in a log file, for people or programs; nodes' standings."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

from hetfl.errors import ConfigurationError
from hetfl.flower.command.main import main as command
from hetfl.flower.command.processes import free_port
from hetfl.flower.command.status import lines, metrics, serving_metrics
from hetfl.flower.events import Event, EventFile, EventLog
from hetfl.flower.standing import Standing, StandingFile, Standings, ranges, read_standings


def test_events_of_several_writers_are_shown_once_and_kept(tmp_path: Path) -> None:
    """The file stays small: what is taken from it is removed, while others write."""
    source = EventFile(tmp_path / "events")
    shown: list[str] = []
    log = EventLog(source, tmp_path / "log", as_json=False, show=shown.append)

    def write(number: int) -> None:
        for i in range(100):
            source("served", f"{number} {i}")

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        log.forward()
    log.forward()
    texts = [line.rpartition(": ")[2] for line in shown]
    assert sorted(texts) == sorted(f"{n} {i}" for n in range(4) for i in range(100))
    assert (tmp_path / "log").read_text().splitlines() == shown
    assert source.path.stat().st_size == 0


def test_the_same_refusal_is_shown_once_a_minute(tmp_path: Path) -> None:
    """A node that is refused is asked again, and refuses again."""
    shown: list[str] = []
    log = EventLog(EventFile(tmp_path / "events"), None, as_json=False, show=shown.append)
    told = ((0, "a"), (13, "a"), (59, "a"), (60, "a"), (61, "b"), (62, "a"), (63, "a"))
    events = [Event("refused", text, seconds=float(second)) for second, text in told]
    (tmp_path / "events").write_text("".join(f"{json.dumps(asdict(event))}\n" for event in events))
    assert len(log.forward()) == 7
    assert [line[17:19] + line[-1] for line in shown] == ["00a", "00a", "01b", "02a"]


def test_lines_have_a_time_and_no_text_of_a_node_can_forge_one() -> None:
    event = Event("refused", "bad\n2026-01-01T00:00:00Z joined: node evil\x1b[31m\u202e", "a\nb", seconds=0.0)
    assert re.fullmatch(r"1970-01-01T00:00:00Z refused: node a\\nb: bad\\n2026[^\n\x1b]*\\u202e", event.line())
    read = json.loads(Event("late", "x", "one", {"round": 3, "event": "forged"}, 1.5).as_json())
    assert read == {"time": "1970-01-01T00:00:01Z", "event": "late", "node": "one", "text": "x", "round": 3}


def test_a_log_may_be_renamed_and_lines_wait_for_it(tmp_path: Path) -> None:
    """The run folder is known only later; logrotate renames a file; a full disk delays lines."""
    shown: list[str] = []
    log = EventLog(EventFile(tmp_path / "events"), None, as_json=True, show=shown.append)
    log("listening", "here")
    log.keep_in(tmp_path / "folder" / "log")
    assert "not written (No such file or directory)" in shown[-1]
    (tmp_path / "folder").mkdir()
    log("joined", "there", "one", clients="0-4")
    kept = [json.loads(line) for line in (tmp_path / "folder" / "log").read_text().splitlines()]
    assert [each["event"] for each in kept] == ["listening", "joined"]
    assert kept[1]["clients"] == "0-4"
    (tmp_path / "folder" / "log").rename(tmp_path / "log.1")
    log("gone", "away")
    assert json.loads((tmp_path / "folder" / "log").read_text())["event"] == "gone"


def some_standings() -> Standings:
    of = Standings(round=3, rounds=5, missing="8", written=1000.0)
    of.nodes["one"] = Standing("one", "serving", "0-4", "", 900.0, 999.0, 2, 1, 0, 0, 12_345, 5, 2.5)
    of.nodes['t"w\\o'] = Standing('t"w\\o', "refused", "5-7", "Expected the server's seed (0) but got 1")
    return of


def test_status_shows_the_nodes_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = StandingFile()
    file.standings, file.folder = some_standings(), tmp_path
    file.write()
    with pytest.raises(SystemExit) as end:
        command(["status", str(tmp_path)])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "round 3/5, as of 0 s ago" in shown
    assert "no node serves clients 8" in shown
    assert re.search(r"^one +serving +0-4 +\d+ s ago +2 +2\.5 s +1 +0 +0 +12\.3 kB +5 B$", shown, re.MULTILINE)
    assert "Expected the server's seed (0) but got 1" in shown
    assert "the server was killed, or hangs" in lines(file.standings, time.time() + 1000)[0]
    file.end()
    assert lines(read_standings(tmp_path), time.time())[0].startswith("round 3/5, the server ended at 2")


@pytest.mark.parametrize("content", ["{", "[]", '{"nodes": {}}', '{"nodes": {"a": {}}, "round": "x"}'])
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigurationError, match=r"Expected the folder of a run .* no nodes\.json"):
        read_standings(tmp_path)
    (tmp_path / "nodes.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"Expected .*nodes\.json as hetfl flower server writes it but got"):
        read_standings(tmp_path)


def test_standings_survive_writing_and_are_written_once_a_second(tmp_path: Path) -> None:
    now = [0.0]
    file = StandingFile(lambda: now[0])
    file.standings, file.folder = some_standings(), tmp_path
    file.write()
    assert read_standings(tmp_path) == file.standings
    file.standings.round = 4
    file.write()
    assert read_standings(tmp_path).round == 3
    now[0] = 1.0
    file.write()
    assert read_standings(tmp_path).round == 4


def test_prometheus_reads_the_standings_over_the_loopback(tmp_path: Path) -> None:
    file, port = StandingFile(), free_port()
    file.standings, file.folder = some_standings(), tmp_path
    file.write()
    (tmp_path / "run").write_text(str(tmp_path))
    with serving_metrics(tmp_path, port):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10)
        with (
            pytest.raises(ConfigurationError, match=f"a free port for --metrics_port but got {port}"),
            serving_metrics(tmp_path, port),
        ):
            pass
    assert text == metrics(file.standings)
    for line in (
        'hetfl_node_served_total{node="one"} 2',
        'hetfl_node_state{node="t\\"w\\\\o",state="refused"} 1',
        'hetfl_node_up_bytes_total{node="one"} 12345',
        "hetfl_round 3",
    ):
        assert line in text.splitlines()
    sample = re.compile(r'[a-z_]+(\{[a-z_]+="(\\.|[^"\\])*"(,[a-z_]+="[^"]*")*\})? [0-9.]+')
    assert all(sample.fullmatch(line) for line in text.splitlines() if not line.startswith("#"))


def test_names_of_nodes_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetfl.flower.standing.MOST_NODES", 3)
    standings = some_standings()
    for number in range(9):
        standings.of(f"forged {number}").state = "gone"
    assert [*standings.nodes] == ["one", "forged 7", "forged 8"]


def test_clients_as_ranges() -> None:
    assert ranges([9, 3, 4, 5, 0]) == "0,3-5,9"


def test_every_kind_of_event_is_documented() -> None:
    root = Path(__file__).parent.parent
    source = "".join(path.read_text() for path in (root / "hetfl" / "flower").rglob("*.py"))
    calls = re.findall(r"\b(?:self\.report|report|log|self\._log|register\.report)\(\s*\"([a-z ]+)\"", source)
    troubles = [kind for pair in re.findall(r"Troubles\(log, \(\"([a-z]+)\", \"([a-z]+)\"\)", source) for kind in pair]
    kinds = {*calls, *troubles, "state lost", "no update"}
    assert len(kinds) > 20
    text = (root / "docs" / "deployment.md").read_text()
    assert {kind for kind in kinds if f"`{kind}`" not in text} == set()
