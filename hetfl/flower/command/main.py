"""``hetfl flower server``, ``client`` and ``demo`` manage processes of Flower, and ``status`` shows a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from hetfl.errors import ConfigurationError
from hetfl.flower import require_flower
from hetfl.flower.command.checks import numbers
from hetfl.flower.command.client import RunningNode, is_made, run_client, start_node
from hetfl.flower.command.processes import free_port, home_folder
from hetfl.flower.command.server import run_server
from hetfl.flower.command.status import show_status
from hetfl.signals import taking_signals

DEFAULT_PORT = 9092


def main(args: Sequence[str]) -> None:
    """Run ``hetfl flower ...``.

    Args:
        args: the arguments after ``flower``.

    Raises:
        ConfigurationError: an argument is invalid, or Flower is not installed.
    """
    require_flower()
    given, rest = _parser().parse_known_args(list(args))
    roles = {"server": run_server, "client": run_client, "demo": _demo, "status": show_status}
    sys.exit(roles[given.role](given, rest))


class _OneLine(argparse.ArgumentParser):
    """A parser whose errors are one line with exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"hetfl: error: {message} (hetfl flower -h)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLine(prog="hetfl flower", description="A federation on real devices.", allow_abbrev=False)
    roles = parser.add_subparsers(dest="role", required=True)
    server = roles.add_parser("server", allow_abbrev=False, help="a SuperLink, and a run of hetfl fit on it")
    server.epilog = "All other arguments are those of hetfl fit."
    server.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s: this machine alone)")
    server.add_argument("--port", type=int, default=DEFAULT_PORT, help="port to listen at (%(default)s)")
    _add_patience(server)
    server.add_argument(
        "--max_norm", type=float, help="largest 2-norm of an update; inf: no bound (default: follows the updates)"
    )
    server.add_argument("--certificates", help="folder of ca.crt, server.crt and server.key: TLS")
    server.add_argument("--node_keys", help="folder of nodes' public keys, *.pub: no other node may join")
    server.add_argument("--metrics_port", type=int, help="port of the loopback for Prometheus: /metrics")
    client = roles.add_parser("client", allow_abbrev=False, help="a SuperNode, for some clients")
    client.epilog = "All other arguments are those of hetfl fit, as the server has them."
    client.add_argument("--server", default=f"127.0.0.1:{DEFAULT_PORT}", help="the server's address (%(default)s)")
    client.add_argument("--clients", required=True, help="which clients this node serves: 0,3,7-9")
    client.add_argument("--states", required=True, help="folder for the clients' states; keep it between runs")
    client.add_argument("--certificates", help="folder of ca.crt, node.crt and node.key: TLS")
    client.add_argument("--key", help="this node's private key; the file of its public key ends in .pub")
    client.add_argument("--name", help="this node's name in logs (that of its key's file, or of this machine)")
    demo = roles.add_parser("demo", allow_abbrev=False, help="a server and its nodes, all on this machine")
    demo.epilog = "All other arguments are those of hetfl fit."
    demo.add_argument("--clients", required=True, action="append", help="clients of a node: 0,3,7-9; once per node")
    for role in (server, client, demo):
        role.add_argument("--home", help="folder for Flower's files and logs; without it they are deleted")
        role.add_argument("--log", help="file for events (server.log in the run folder, node.log in --states)")
        role.add_argument("--json_logs", "--json-logs", action="store_true", help="events as JSON, one per line")
    status = roles.add_parser("status", allow_abbrev=False, help="the nodes of a run")
    status.add_argument("run", help="folder of a run of hetfl flower server")
    status.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _add_patience(server: argparse.ArgumentParser) -> None:
    """Add the options that say how long a server waits."""
    for option, default, text in (
        ("--deadline", 600.0, "seconds that nodes have to train (%(default)s)"),
        ("--statistics_deadline", None, "seconds that nodes have for batch-norm statistics (as --deadline)"),
        ("--losses_deadline", None, "seconds that nodes have for losses (as --deadline)"),
        ("--enough", 1.0, "share of the clients asked that a round waits for (%(default)s)"),
        ("--start", 300.0, "seconds to wait for a node for every client (%(default)s)"),
        ("--takeover", 600.0, "seconds after which a second node takes over the clients of one that is away"),
    ):
        server.add_argument(option, type=float, default=default, help=text)


def _connect_all(nodes: Sequence[RunningNode]) -> None:
    """Connect the nodes that are made.

    Raises:
        ConfigurationError: a node could not be made, or has ended.
    """
    for node in nodes:
        if node.supernode is None and is_made(node.home / "report"):
            node.connect()
        elif not node.lives():
            raise ConfigurationError(f"Expected the node's process to go on but it ended: {node.warm.last_words()}")


def _demo(given: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run a server and its nodes here, over the loopback; return the run's exit status."""
    for clients in given.clients:
        numbers(clients)
    port = str(free_port())
    with home_folder(given.home) as home, taking_signals():
        nodes: list[RunningNode] = []
        try:
            for number, clients in enumerate(given.clients):
                node_home = home / f"node{number}"
                arguments = ["client", "--server", f"127.0.0.1:{port}", "--clients", clients]
                arguments += ["--states", str(node_home / "states"), "--name", f"node{number}"]
                nodes.append(start_node(_parser().parse_args(arguments), rest, node_home))
            mine = [*(["--log", given.log] if given.log else []), *(["--json_logs"] if given.json_logs else [])]
            server = _parser().parse_known_args(["server", "--port", port, "--home", str(home), *mine, *rest])
            return run_server(*server, watch=lambda: _connect_all(nodes))
        finally:
            for node in nodes:
                node.tell()
            for node in nodes:
                node.stop()
