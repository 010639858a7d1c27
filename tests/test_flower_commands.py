"""Wrong options of hetfl flower are reported in one line before any process starts."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

from httpx import HTTPError

from hetfl.errors import ConfigurationError
from hetfl.flower.command import server_app
from hetfl.flower.command.checks import numbers, own_folder
from hetfl.flower.command.client import is_made
from hetfl.flower.command.main import main as command


@pytest.fixture(autouse=True)
def _nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a new folder with files for the options, where starting a process fails."""
    monkeypatch.chdir(tmp_path)
    for folder in ("none", "tls", "keys"):
        (tmp_path / folder).mkdir()
    for name in ("key", "key.pub", "lonely", "keys/one.pub", "tls/ca.crt"):
        (tmp_path / name).touch()

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr("subprocess.Popen", refuse)
    monkeypatch.setattr("subprocess.run", refuse)


CLIENT = ["client", "--clients", "0-2", "--states", "states"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["server", "--port", "70000"], "a port from 1 to 65535 for --port but got 70000"),
        (["server", "--port", "0"], "a port from 1 to 65535 for --port but got 0"),
        (["server", "--host", "no.such.host.invalid"], "a free port but got no.such.host.invalid:9092"),
        (["server", "--deadline", "-1"], "deadline, in seconds, above 0 but got -1"),
        (["server", "--deadline", "nan"], "deadline, in seconds, above 0 but got nan"),
        (["server", "--enough", "1.1"], "enough, a share of clients"),
        (["server", "--start", "inf"], "start, in seconds, above 0 but got inf"),
        (["server", "--takeover", "-1"], "takeover, in seconds, of at least 0 but got -1"),
        (["server", "--statistics_deadline", "0"], "statistics_deadline, in seconds, above 0 but got 0"),
        (["server", "--metrics_port", "0"], "a port from 1 to 65535 for --metrics_port but got 0"),
        (["status", "none"], r"the folder of a run of hetfl flower server but got no nodes\.json in none"),
        (["status", "none", "more"], "the folder of a run alone but got more"),
        (["server", "--max_norm", "nan"], "--max_norm, of an update, above 0 but got nan"),
        (["server", "--max_norm", "-3"], "--max_norm, of an update, above 0 but got -3"),
        (["server", "--node_keys", "keys"], "--certificates with --node_keys"),
        (["server", "--certificates", "tls", "--node_keys", "none"], r"public keys, \*.pub, .* but got none in none"),
        (["server", "--certificates", "tls", "--node_keys", "nowhere"], r"public keys, \*.pub, .* got none in nowhere"),
        (["server", "--certificates", "tls"], "server.crt in the folder of certificates but got no such file"),
        (["server", "--certificates", "nowhere"], "in the folder of certificates but got no such file"),
        ([*CLIENT, "--clients", "5-3"], "ranges of clients such as 7-9 but got 5-3"),
        ([*CLIENT, "--clients", "0-99999999999"], "ranges of clients such as 7-9 but got 0-99999999999"),
        ([*CLIENT, "--clients", "all"], "clients such as 0,3,7-9 but got 'all'"),
        ([*CLIENT, "--server", "fl.example.org"], "--server as host:port, .* but got fl.example.org"),
        ([*CLIENT, "--server", "fl.example.org:99999"], "a port from 1 to 65535 for --server but got 99999"),
        ([*CLIENT, "--certificates", "tls", "--key", "nokey"], "a key pair with --key but got no such file: nokey"),
        ([*CLIENT, "--certificates", "tls", "--key", "lonely"], "got no such file: lonely.pub"),
        ([*CLIENT, "--key", "key"], "--certificates with --key but got none"),
        ([*CLIENT, "--certificates", "tls", "--key", "key"], "node.crt in the folder of certificates"),
        ([*CLIENT, "--states", "key"], "a folder to write clients' states but got key: a file is there"),
        (["demo", "--clients", "0-2", "--clients", "8-3"], "ranges of clients such as 7-9 but got 8-3"),
    ],
)
def test_wrong_options_are_refused_in_one_line(args: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        command(args)
    assert "\n" not in str(error.value)


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"a free port but got 127.0.0.1:{port}: Address already in use"):
            command(["server", "--port", str(port)])


def test_two_processes_cannot_share_a_home_folder(tmp_path: Path) -> None:
    """A server and a node on one machine, or two nodes, would mix up their programs and logs."""
    with own_folder(tmp_path), pytest.raises(ConfigurationError, match="a folder of its own for --home"):
        command([*CLIENT, "--home", str(tmp_path)])
    with own_folder(tmp_path):
        pass


def test_clients_may_be_given_as_ranges() -> None:
    assert numbers("0, 3,7-9") == [0, 3, 7, 8, 9]
    assert numbers("4-4") == [4]


def test_the_reason_why_a_node_cannot_be_made_is_reported(tmp_path: Path) -> None:
    report = tmp_path / "report"
    assert not is_made(report)
    report.write_text("some warning\nhetfl: error: Expected this but got that\n")
    with pytest.raises(ConfigurationError, match="^Expected this but got that$"):
        is_made(report)
    report.write_text("")
    assert is_made(report)


def test_a_superlink_that_abandons_the_run_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SuperLink abandons a run after a minute of silence; the error says to resume from the checkpoint."""

    def given_up(*args: object, **options: object) -> None:
        raise HTTPError("Client error '401 Unauthorized'\nFor more information ...")

    monkeypatch.setattr(server_app, "start", given_up)
    monkeypatch.setattr(server_app, "check_arguments", lambda args: None)
    settings: dict[str, object] = {
        "home": str(tmp_path),
        "folder": str(tmp_path),
        "arguments": [],
        "max_norm": None,
    }
    context = SimpleNamespace(run_config={"settings": json.dumps({**settings, "patience": {}})})
    server_app.serve(None, context)  # type: ignore[arg-type]
    assert (tmp_path / "status").read_text() == "1"
    output = (tmp_path / "output").read_text()
    assert output.startswith("hetfl: error: Expected the SuperLink to go on with the run but got Client error '401")
    assert output.count("\n") == 1
