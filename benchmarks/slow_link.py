"""A slow link on the loopback: passes connections on to a port, with so many bytes per second in each direction."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

READ_BYTES = 8192
BUFFER_BYTES = 1 << 16
"""The most bytes that wait in a connection, beside those in the sender's own buffers."""


class SlowLink:
    """Listens at a port in a thread, from the beginning to the end of a ``with`` block.

    Args:
        listen: the port.
        target: the port to which connections are passed on.
        rate: bytes per second of all connections together, in each direction.
    """

    def __init__(self, listen: int, target: int, rate: float) -> None:
        self._listen, self._target, self._rate = listen, target, rate
        self._free = [0.0, 0.0]  # when each direction is free, monotonic seconds
        self._loop = asyncio.new_event_loop()
        self._ready, self._end = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def __enter__(self) -> SlowLink:
        """Begin to listen."""
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *error: object) -> None:
        """End all connections."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)  # connections have that of the listener
        server.bind(("127.0.0.1", self._listen))
        listening = await asyncio.start_server(self._connected, sock=server, limit=READ_BYTES)
        self._ready.set()
        await self._end.wait()
        listening.close()
        connections = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target, limit=READ_BYTES)
            writers.append(back)
            await asyncio.gather(self._pass(reader, back, 0), self._pass(there, writer, 1))
        except OSError:
            pass  # the target does not listen yet, or has ended
        finally:
            for each in writers:
                each.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: int) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                self._free[direction] = max(self._free[direction], time.monotonic()) + len(data) / self._rate
                await asyncio.sleep(self._free[direction] - time.monotonic())
                writer.write(data)
                await writer.drain()
            writer.write_eof()
