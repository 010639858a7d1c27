"""The slow link of the benchmarks passes all bytes on, at its rate."""

from __future__ import annotations

import socket
import threading
import time

import pytest

pytest.importorskip("flwr", reason="benchmarks of Flower need it: pip install 'hetfl[flower]'")

from slow_link import SlowLink

from hetfl.flower.command.processes import free_port

RATE, SIZE = 200_000.0, 60_000


def echo(server: socket.socket) -> None:
    connection, _ = server.accept()
    while data := connection.recv(4096):
        connection.sendall(data)
    connection.close()


def test_bytes_pass_in_both_directions_at_the_rate() -> None:
    port, begin, received = free_port(), time.monotonic(), 0
    with socket.create_server(("127.0.0.1", 0)) as server, SlowLink(port, server.getsockname()[1], RATE):
        thread = threading.Thread(target=echo, args=(server,))
        thread.start()
        with socket.create_connection(("127.0.0.1", port), timeout=30.0) as connection:
            connection.sendall(bytes(SIZE))
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(4096):
                received += len(data)
        thread.join()
    assert received == SIZE
    assert time.monotonic() - begin >= SIZE / RATE
