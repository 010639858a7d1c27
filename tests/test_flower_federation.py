"""Federations of real processes over the loopback: Flower's SuperLink and SuperNodes, started by our commands."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

import pandas as pd

from hetfl.flower.standing import read_standings
from tests.flower_federations import (
    HETFL,
    NODES,
    SECONDS,
    Federation,
    args,
    assert_same_end,
    checkpoint,
    left_behind,
    replayed,
    run_of,
    running,
)

pytestmark = pytest.mark.slow

DEPLOYMENT = Path(__file__).parent.parent / "docs" / "deployment.md"


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with running(tmp_path) as made:
        yield made


def test_three_nodes_give_the_same_bits_as_one_process(federation: Federation) -> None:
    for number in NODES:
        federation.node(number)
    federation.server()
    assert federation.end() == 0, federation.log()
    alone = replayed(federation.folder, {0: federation.log()})
    assert_same_end(run_of(federation.folder), alone, federation.folder)


def test_buffered_rounds_take_answers_as_they_arrive(federation: Federation) -> None:
    schedule = ["--model.schedule=hetfl.schedule.Buffered", "--model.schedule.size=2", "--model.schedule.concurrency=5"]
    for number in NODES:
        federation.node(number, settings=args(federation.folder, *schedule))
    federation.server(settings=args(federation.folder, *schedule))
    assert federation.end() == 0, federation.log()
    (folder,) = (federation.folder / "flower_digits").iterdir()
    metrics, timeline = pd.read_csv(folder / "metrics.csv"), pd.read_csv(folder / "timeline.csv")
    assert (metrics["schedule/updates"] >= 2).all()
    assert metrics["sim/seconds_total"].is_monotonic_increasing
    assert timeline["accepted"].all(), f"{timeline}\n{federation.log()}"
    assert metrics["schedule/staleness_max"].max() >= 1, "clients of several rounds were never under way together"


@pytest.mark.filterwarnings("ignore:Round:UserWarning", "ignore:No update of a round:UserWarning")
def test_killed_nodes_return_and_their_clients_continue_from_the_accepted_state(federation: Federation) -> None:
    """HETFL_KILLS nodes (default 2) are killed with SIGKILL in the middle of a round, one in every fourth round."""
    kills = int(os.environ.get("HETFL_KILLS", "2"))
    settings = [f"--trainer.max_epochs={3 + 4 * kills}", "--trainer.limit_val_batches=0"]
    for number in NODES:
        federation.node(number, settings=args(federation.folder, *settings))
    federation.server("--deadline", "30", settings=args(federation.folder, *settings))
    for kill in range(kills):
        federation.wait_for_rounds(2 + 4 * kill)
        time.sleep(0.5 * kill % 4)
        federation.kill(f"node{kill % 3}")
    assert federation.end(seconds=3 * SECONDS) == 0, federation.log()
    alone = replayed(federation.folder, {0: federation.log()}, *settings)
    assert_same_end(run_of(federation.folder), alone, federation.folder)
    assert "begins anew" not in federation.log(), "a kill loses no state"


@pytest.mark.filterwarnings("ignore:Round:UserWarning", "ignore:No client can run level:UserWarning")
def test_a_killed_server_resumes_as_a_new_run_with_the_same_client_states(federation: Federation) -> None:
    """HETFL_KILLS servers (default 1) are killed with SIGKILL at different instants, one in every second round."""
    kills = int(os.environ.get("HETFL_KILLS", "1"))
    settings = [f"--trainer.max_epochs={3 + 2 * kills}"]
    for number in NODES:
        federation.node(number, settings=args(federation.folder, *settings))
    federation.server(settings=args(federation.folder, *settings), name="server0")
    firsts = [0]
    for kill in range(kills):
        federation.wait_for_rounds(2 + 2 * kill, f"server{kill}")
        time.sleep(0.7 * (kill + 1) % 4)
        federation.kill(f"server{kill}")
        assert federation.end(f"server{kill}") != 0
        run = run_of(federation.folder)
        firsts.append(checkpoint(run)["epoch"] + 1)
        again = ["-c", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
        federation.server(settings=again, name=f"server{kill + 1}")
    assert federation.end(f"server{kills}") == 0, federation.log(f"server{kills}")
    logs = {first: federation.log(f"server{number}") for number, first in enumerate(firsts)}
    alone = replayed(federation.folder, logs, *settings)
    assert_same_end(run_of(federation.folder), alone, federation.folder)


def test_ctrl_c_stops_the_run_at_a_round_end_and_leaves_no_processes(tmp_path: Path) -> None:
    before = set(Path("/tmp").glob("hetfl-flower-*"))
    command = [HETFL, "flower", "demo", *(part for each in NODES.values() for part in ("--clients", each))]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("wb") as log:
        demo = subprocess.Popen([*command, *args(tmp_path)], stdout=log, stderr=log, env=env, start_new_session=True)
        until = time.monotonic() + SECONDS
        while "round 1/" not in (tmp_path / "log").read_text():
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.2)
        port = re.search(r"--port (\d+)", " ".join(left_behind_lines("flower-superlink")))
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=120) == 130
    assert port is not None
    assert not left_behind(int(port[1]))
    assert set(Path("/tmp").glob("hetfl-flower-*")) <= before
    assert len(pd.read_csv(run_of(tmp_path) / "metrics.csv")) in (1, 2)


def left_behind_lines(name: str) -> list[str]:
    lines = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in lines.splitlines() if name in line]


@pytest.mark.skipif(not shutil.which("openssl") or not shutil.which("ssh-keygen"), reason="makes certificates and keys")
def test_only_nodes_with_a_registered_key_and_the_right_ca_join(federation: Federation) -> None:
    """Certificates and keys are made with the commands of docs/deployment.md."""
    folder = federation.folder
    (commands,) = re.findall(r"```sh\n(mkdir tls.*?)```", DEPLOYMENT.read_text(), re.DOTALL)
    for name in ("own", "other"):
        (folder / name).mkdir()
        subprocess.run(["bash", "-ec", commands], cwd=folder / name, check=True, capture_output=True)
    tls, keys = ["--certificates", str(folder / "own/tls")], folder / "own/keys"
    settings = args(folder, "--trainer.max_epochs=1")
    federation.server(*tls, "--node_keys", str(keys), "--start", f"{SECONDS / 10:g}", settings=settings)
    federation.node(0, *tls, "--key", str(keys / "one"), settings=settings)
    federation.node(1, *tls, "--key", str(folder / "other/keys/one"), settings=settings)  # this key is not registered
    federation.node(2, "--certificates", str(folder / "other/tls"), "--key", str(keys / "two"), settings=settings)
    plain = [
        "client",
        "--clients",
        "3-5",
        "--server",
        f"127.0.0.1:{federation.port}",
        "--states",
        str(folder / "plain"),
    ]
    federation.command("in the clear", [*plain, *settings])
    assert federation.end() == 0, federation.log()
    assert re.search(r"No node serves clients 3-8", federation.log())
    assert re.search(r"refused: a node whose key is not registered tried to join", federation.log())
    assert re.search(r"disconnected: .* its key is not registered at the server .*305 Failed", federation.log("node1"))
    assert re.search(r"unreachable: the server's certificate is not accepted with", federation.log("node2"))
    assert re.search(r"unreachable: the server does not answer without TLS: give", federation.log("in the clear"))
    assert re.search(r"joined: node one: clients 0-2", federation.log())
    assert re.search(r"joined: node one: the server has the same settings; clients 0-2", federation.log("node0"))
    for side in (federation.log(), federation.log("node0")):
        assert re.search(r"served: node one: round 1: ", side)
    (run,) = folder.glob("flower_digits/*")
    assert read_standings(run).nodes["one"].served == 1
    assert "listening: " in (run / "server.log").read_text()
    assert "made: " in (folder / "states0" / "node.log").read_text()
    # Started again with the same --home: the key is registered again, and the waiting node joins.
    federation.server(*tls, "--node_keys", str(keys), "--start", f"{SECONDS / 5:g}", settings=settings)
    assert federation.end() == 0, federation.log()
    assert len(re.findall(r"No node serves clients 3-8", federation.log())) == 2
