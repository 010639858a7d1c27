"""Checks of the options of ``hetfl flower``, before any process is started."""

from __future__ import annotations

import argparse
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hetfl.errors import ConfigurationError
from hetfl.files import make_folder
from hetfl.flower.command.processes import LOCK
from hetfl.flower.patience import Patience

MOST_CLIENTS = 10**7
"""Largest number of clients in a range such as ``7-9``; a larger range is taken for a typing error."""


def check_server(given: argparse.Namespace) -> Patience:
    """Check the server's options; return its patience.

    Raises:
        ConfigurationError: an option is invalid.
    """
    if given.node_keys and not given.certificates:
        raise ConfigurationError(
            "Expected --certificates with --node_keys but got none: keys are for connections by TLS"
        )
    if given.node_keys and not list(Path(given.node_keys).glob("*.pub")):
        raise ConfigurationError(
            f"Expected nodes' public keys, *.pub, in the folder of --node_keys but got none in {given.node_keys}: no "
            "node could join"
        )
    if given.max_norm is not None and not given.max_norm > 0:
        raise ConfigurationError(f"Expected --max_norm, of an update, above 0 but got {given.max_norm}")
    check_port(given.port, "--port")
    if given.metrics_port is not None:
        check_port(given.metrics_port, "--metrics_port")
    return Patience(
        given.deadline, given.enough, given.start, given.statistics_deadline, given.losses_deadline, given.takeover
    )


def check_client(given: argparse.Namespace) -> None:
    """Check a node's options.

    Raises:
        ConfigurationError: an option is invalid.
    """
    numbers(given.clients)
    host, _, port = given.server.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigurationError(f"Expected --server as host:port, such as fl.example.org:9092, but got {given.server}")
    check_port(int(port), "--server")
    for path in (given.key, f"{given.key}.pub") if given.key else ():
        if not Path(path).is_file():
            raise ConfigurationError(f"Expected a key pair with --key but got no such file: {path}")
    if given.key and not given.certificates:
        raise ConfigurationError("Expected --certificates with --key but got none: keys are for connections by TLS")
    folder = make_folder(Path(given.states), "clients' states")
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(f"Expected a folder that can be written for --states but got {folder}")


def check_port(port: int, option: str) -> None:
    """Check a port.

    Raises:
        ConfigurationError: the port is not from 1 to 65535.
    """
    if not 0 < port < 2**16:
        raise ConfigurationError(f"Expected a port from 1 to 65535 for {option} but got {port}")


def numbers(text: str) -> list[int]:
    """Return the ids of the clients that a text such as ``0,3,7-9`` names.

    Raises:
        ConfigurationError: the text does not have this form, or a range is descending or too large.

    >>> numbers("0,3,7-9")
    [0, 3, 7, 8, 9]
    """
    clients: list[int] = []
    for part in str(text).split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigurationError(f"Expected clients such as 0,3,7-9 but got {text!r}")
        if not 0 <= int(last or first) - int(first) < MOST_CLIENTS:
            raise ConfigurationError(f"Expected ranges of clients such as 7-9 but got {part.strip()}")
        clients += range(int(first), int(last or first) + 1)
    return clients


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Lock a folder of Flower's files against other commands of ``hetfl flower``.

    Raises:
        ConfigurationError: another command has locked the folder.
    """
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"Expected a folder of its own for --home but got {folder}, where another hetfl flower is at work"
            ) from error
        yield
