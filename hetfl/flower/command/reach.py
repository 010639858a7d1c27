"""Whether a node can reach its server, and why not: Flower's SuperNode tries again for ever without a reason."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from hetfl.printable import printable

SECONDS = 3.0
"""Seconds to wait for the server."""
HEALTH = "GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"


def trouble(server: str, ca: Path | None) -> str:
    """Return why a server cannot be reached; empty text: it can.

    Args:
        server: host and port.
        ca: certificate of the CA that signed the server's; None: without TLS.
    """
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
            return _plain(connection, host) if ca is None else _by_tls(connection, host, ca)
    except TimeoutError:
        return f"{server} does not answer within {SECONDS:g} s: is its port open in the firewall?"
    except socket.gaierror as error:
        return printable(f"{host} is no known name of a machine ({error.strerror})")
    except OSError as error:
        return printable(f"{server}: {error.strerror or error}")


def answers(server: str) -> bool:
    """Return whether anything listens at the server's port."""
    host, _, port = server.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS):
            return True
    except OSError:
        return False


def _by_tls(connection: socket.socket, host: str, ca: Path) -> str:
    try:
        with ssl.create_default_context(cafile=str(ca)).wrap_socket(connection, server_hostname=host):
            return ""
    except ssl.SSLCertVerificationError as error:
        return printable(f"the server's certificate is not accepted with {ca}: {error.verify_message}")
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
            return "the server does not use TLS: start this node without --certificates, or the server with them"
        return printable(f"no TLS connection ({error.reason or error})")
    except ConnectionError:
        return "the server closes the connection: does it use TLS?"


def _plain(connection: socket.socket, host: str) -> str:
    connection.sendall(HEALTH.format(host=host).encode())
    try:
        first = connection.recv(16)
    except ConnectionError:
        first = b""
    if first.startswith(b"HTTP/"):
        return ""
    return "the server does not answer without TLS: give --certificates"
