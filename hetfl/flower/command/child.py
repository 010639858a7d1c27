"""A command of Flower that ends with its parent, and when its main thread does: ``child.py PARENT COMMAND ...``.

``-m MODULE`` instead of a command is a module of hetfl, which is killed with its parent: it has nothing to end.

It runs as a file, not as a module: importing the hetfl package would take longer than importing Flower.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import runpy
import shutil
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: the signal that a process gets when its parent ends."""


NODES = ("/v1/fleet/", "/health")
"""Beginnings of the paths that nodes use; others control the SuperLink, and the processes beside it use them."""


class OnlyNodes:
    """Refuses requests of other machines, except those of nodes.

    A SuperLink serves nodes and those who control it at one port, and asks only nodes for a key. So everyone who
    reaches the port could start another app, end the run, or register a key.

    Args:
        app: the application that gets the other requests.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        """Pass a request on, or answer it with status 403."""
        if scope["type"] == "lifespan" or scope["path"].startswith(NODES) or is_of_this_machine(scope):
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"only for processes of the server's machine"})


def is_of_this_machine(scope: Mapping[str, Any]) -> bool:
    """Return whether a request is from an address of the machine that serves it."""
    try:
        peer, here = (ipaddress.ip_address((scope[end] or ("",))[0]) for end in ("client", "server"))
    except (KeyError, ValueError):  # an unknown peer
        return False
    mapped = getattr(peer, "ipv4_mapped", None)  # an IPv4 peer of an IPv6 socket
    return peer == here or (mapped or peer).is_loopback


def admit_only_nodes() -> None:
    """Let the SuperLink of this process use :class:`OnlyNodes`."""
    from flwr.superlink import extensions

    middleware = extensions.Middleware  # type: ignore[attr-defined]  # Starlette's, which hetfl does not declare
    extensions.get_middleware = lambda: (middleware(OnlyNodes),)


def main() -> None:
    """Run the command in this process."""
    parent, name, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL if name == "-m" else signal.SIGTERM)
    if os.getppid() != int(parent):  # the parent ended before prctl
        sys.exit(1)
    try:
        if name == "-m":
            sys.argv = arguments
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
            return
        if name == "flower-superlink":
            admit_only_nodes()
        (command,) = entry_points(group="console_scripts", name=name)
        sys.argv = [shutil.which(name) or name, *arguments]
        sys.exit(command.load()())
    except SystemExit:
        raise
    except BaseException:
        # If a restarted SuperLink does not know a SuperNode, two threads of the SuperNode interrupt it at once. The
        # second interrupt stops the shutdown that the first began, and the remaining threads would never end.
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main()
