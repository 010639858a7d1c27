"""A round of hetfl on Flower compared with an empty round of Flower; all federations run at once, rounds in turn.

The baseline is a small app that sends an empty message to three nodes and waits for their empty answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from timing import Row, interleaved, parser, report, rows

from hetfl.flower.command.processes import FlowerProcess, environment, free_port, listens, wait_until

NODES = 3
WARMUP = 2
"""Number of rounds that are not timed."""
START_SECONDS = 600.0
"""Maximum time for the start of all federations, also on a busy machine."""

PROJECT = """\
[project]
name = "emptyapp"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["flwr"]
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[tool.flwr.app]
publisher = "hetfl"
[tool.flwr.app.components]
serverapp = "emptyapp.server:app"
clientapp = "emptyapp.client:app"
[tool.flwr.app.config]
folder = {folder}
rounds = {rounds}
"""
SERVER = """\
import time
from pathlib import Path
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    folder = Path(context.run_config["folder"])
    while len(nodes := list(grid.get_node_ids())) < NODES:
        time.sleep(0.1)
    for number in range(context.run_config["rounds"]):
        while not (folder / f"go-{number}").exists():
            time.sleep(0.01)
        messages = [Message(RecordDict(), node, MessageType.TRAIN) for node in nodes]
        EXCHANGE
        (folder / f"done-{number}").touch()
"""
EXCHANGES = {
    "as it comes": "assert len(list(grid.send_and_receive(messages))) == NODES",
    "polled often": """\
waiting = set(grid.push_messages(messages))
        while waiting:
            came = list(grid.pull_messages(waiting))
            waiting -= {message.metadata.reply_to_message_id for message in came}
            time.sleep(0 if came else 0.2)""",
}
CLIENT = """\
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def answer(message, context):
    return Message(RecordDict(), reply_to=message)
"""
SMALL = [
    *("--data.num_clients", str(NODES), "--model.selection.init_args.clients_per_round", str(NODES)),
    *("--model.net.init_args.hidden", "[8,16]", "--model.local.epochs", "1", "--plots", "false"),
    *("--final_test", "false"),
]
ROUND = ["--model.net.init_args.norm", "none", "--trainer.limit_val_batches", "0"]
"""Settings for one exchange of messages per round, without statistics and evaluation."""
ROOT = Path(__file__).parent.parent


@contextmanager
def empty_federation(folder: Path, exchange: str, rounds: int) -> Iterator[Callable[[int], object]]:
    """Run a Flower app that does nothing, only with processes of Flower.

    Args:
        folder: folder for its files.
        exchange: one of :data:`EXCHANGES`.
        rounds: number of rounds.

    Yields:
        A function that runs the next round.
    """
    address = f"127.0.0.1:{free_port()}"
    app = folder / "app" / "emptyapp"
    app.mkdir(parents=True)
    source = SERVER.replace("EXCHANGE", EXCHANGES[exchange]).replace("NODES", str(NODES))
    (app / "__init__.py").touch()
    (app / "server.py").write_text(source)
    (app / "client.py").write_text(CLIENT)
    (app.parent / "pyproject.toml").write_text(PROJECT.format(folder=json.dumps(str(folder)), rounds=rounds))
    (folder / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{address}"\ninsecure = true\n'
    )
    env = environment(folder)
    if exchange == "as it comes":
        del env["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"]
    with ExitStack() as stack:
        host, port = address.split(":")
        link = ["flower-superlink", "--insecure", "--host", host, "--port", port]
        started = child(stack, [*link, "--disable-runtime-dependency-installation"], folder / "link.log", env)
        wait_until(lambda: listens(host, int(port)), started, START_SECONDS)
        for number in range(NODES):
            node = ["flower-supernode", "--insecure", "--superlink", address, "--port", str(free_port())]
            child(stack, node, folder / f"node{number}.log", env)
        subprocess.run(["flwr", "run", str(app.parent), "here"], env=env, check=True, stdout=subprocess.DEVNULL)
        yield partial(turn, folder)


@contextmanager
def our_federation(folder: Path, settings: Sequence[str], rounds: int) -> Iterator[Callable[[int], object]]:
    """Run ``hetfl flower demo``.

    Args:
        folder: folder for its files.
        settings: settings of the run.
        rounds: number of rounds.

    Yields:
        A function that runs the next round.
    """
    command = [str(Path(sys.executable).parent / "hetfl"), "flower", "demo", "--home", str(folder / "home")]
    for number in range(NODES):
        command += ["--clients", str(number)]
    command += ["-c", str(ROOT / "configs" / "experiment" / "flower_digits.yaml"), *SMALL, *settings]
    command += [f"--trainer.max_epochs={rounds}", f"--trainer.logger.init_args.root={folder / 'runs'}"]
    command += ["--trainer.callbacks+=flower_turns.Turns", f"--trainer.callbacks.folder={folder}"]
    with (folder / "log").open("wb") as log:
        run = subprocess.Popen(command, cwd=Path(__file__).parent, stdout=log, stderr=log, env=threads_of_one())
    try:
        yield partial(turn, folder)
    finally:
        run.terminate()
        run.wait()


def threads_of_one() -> dict[str, str]:
    """Return the environment with one thread per process, because there are more processes than cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def child(stack: ExitStack, command: Sequence[str], log: Path, env: dict[str, str]) -> FlowerProcess:
    """Start a process that is stopped when a stack is closed."""
    made = FlowerProcess(command, log, env)
    stack.callback(made.stop)
    return made


def turn(folder: Path, number: int) -> None:
    """Start the next round of a federation, and wait for its end.

    Raises:
        TimeoutError: the round does not end in time.
    """
    (folder / f"go-{number}").touch()
    until = time.monotonic() + START_SECONDS
    while not (folder / f"done-{number}").exists():
        if time.monotonic() > until:
            raise TimeoutError(f"Expected round {number} of {folder} within {START_SECONDS:g} s but it is not over")
        time.sleep(0.01)


def rounds_in_turns(blocks: int, whole: bool) -> list[Row]:
    """Return the times of rounds of all federations.

    Args:
        blocks: number of timed rounds.
        whole: also time rounds with statistics and evaluation.
    """
    total = blocks + WARMUP
    ours = {"hetfl, a round": ROUND, **({"hetfl, with statistics and evaluation": []} if whole else {})}
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hetfl-bench-")))
        sides: dict[str, Callable[[int], object]] = {}
        for number, exchange in enumerate(EXCHANGES):
            (folder := top / f"flower{number}").mkdir()
            name = f"Flower, empty messages, {exchange}"
            sides[name] = stack.enter_context(empty_federation(folder, exchange, total))
        for number, (name, settings) in enumerate(ours.items()):
            (folder := top / f"hetfl{number}").mkdir()
            sides[name] = stack.enter_context(our_federation(folder, settings, total))
        counted = {name: counting(side) for name, side in sides.items()}
        return rows("a round of three nodes", interleaved(counted, blocks=blocks, warmup=WARMUP))


def counting(side: Callable[[int], object]) -> Callable[[], object]:
    """Return a function that runs the next round at every call."""
    numbers = iter(range(10**9))
    return lambda: side(next(numbers))


def main() -> None:
    """Run from the command line."""
    options = parser(__doc__, blocks=10)
    options.add_argument("--whole", action="store_true", help="also time rounds with statistics and evaluation")
    given = options.parse_args()
    report(rounds_in_turns(given.blocks, given.whole), given.json)


if __name__ == "__main__":
    main()
