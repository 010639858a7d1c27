"""``hetfl flower server``, ``client`` and ``demo``: thin wrappers of Flower's commands, whose processes they manage."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from hetfl.flower import require_flower
from hetfl.flower.command.checks import numbers
from hetfl.flower.command.client import is_made, run_client, start_node
from hetfl.flower.command.processes import FlowerProcess, free_port, home_folder
from hetfl.flower.command.server import run_server
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
    roles = {"server": run_server, "client": run_client, "demo": _demo}
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
    server.add_argument("--deadline", type=float, default=600.0, help="seconds that nodes have for an answer")
    server.add_argument("--enough", type=float, default=1.0, help="share of the clients asked that a round waits for")
    server.add_argument("--start", type=float, default=300.0, help="seconds to wait for a node for every client")
    server.add_argument(
        "--max_norm", type=float, help="largest 2-norm of an update; inf: no bound (default: follows the updates)"
    )
    server.add_argument("--certificates", help="folder of ca.crt, server.crt and server.key: TLS")
    server.add_argument("--node_keys", help="folder of nodes' public keys, *.pub: no other node may join")
    client = roles.add_parser("client", allow_abbrev=False, help="a SuperNode, for some clients")
    client.epilog = "All other arguments are those of hetfl fit, as the server has them."
    client.add_argument("--server", default=f"127.0.0.1:{DEFAULT_PORT}", help="the server's address (%(default)s)")
    client.add_argument("--clients", required=True, help="which clients this node serves: 0,3,7-9")
    client.add_argument("--states", required=True, help="folder for the clients' states; keep it between runs")
    client.add_argument("--certificates", help="folder of ca.crt, node.crt and node.key: TLS")
    client.add_argument("--key", help="this node's private key; the file of its public key ends in .pub")
    demo = roles.add_parser("demo", allow_abbrev=False, help="a server and its nodes, all on this machine")
    demo.epilog = "All other arguments are those of hetfl fit."
    demo.add_argument("--clients", required=True, action="append", help="clients of a node: 0,3,7-9; once per node")
    for role in (server, client, demo):
        role.add_argument("--home", help="folder for Flower's files and logs; without it they are deleted")
    return parser


def _demo(given: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run a server and its nodes here, over the loopback; return the run's exit status."""
    for clients in given.clients:
        numbers(clients)
    port = str(free_port())
    with home_folder(given.home) as home, taking_signals():
        nodes: list[FlowerProcess] = []
        try:
            for number, clients in enumerate(given.clients):
                node_home = home / f"node{number}"
                arguments = ["client", "--server", f"127.0.0.1:{port}", "--clients", clients]
                arguments += ["--states", str(node_home / "states")]
                nodes.append(start_node(_parser().parse_args(arguments), rest, node_home))
            reports = [home / f"node{number}" / "report" for number in range(len(nodes))]
            server = _parser().parse_known_args(["server", "--port", port, "--home", str(home), *rest])
            return run_server(*server, watch=lambda: all(map(is_made, reports)))
        finally:
            for node in nodes:
                node.tell()
            for node in nodes:
                node.stop()
