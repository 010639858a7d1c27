"""Flower's processes: started without telemetry and update checks, watched, and stopped with this process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hetfl.errors import ConfigurationError
from hetfl.flower.events import COLOURS
from hetfl.flower.patience import PIECE_BYTES
from hetfl.printable import printable

POLL_SECONDS = 0.2
PREFIX = "hetfl-flower-"
"""Beginning of the names of temporary folders."""
LOCK = ".lock"
"""Name of the file that a command locks in its folder."""
NEW_SECONDS = 60.0
"""Age of a temporary folder that its command must have locked."""
EXIT = "Exit Code:"
"""Text in Flower's log before the reason of an exit."""
CHILD = Path(__file__).with_name("child.py")
PATIENCE_SECONDS = 3.0
"""Seconds that a process may take to end after SIGTERM, before it is killed."""
LAST_BYTES = 1 << 16
"""Most bytes of a log in which the reason of an end is looked for."""
KILL_SECONDS = 1.0
"""Seconds to wait for the end of a process that was killed."""
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
    "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(PIECE_BYTES),
}
"""Environment variables for Flower: no telemetry, no update check, no installation, tasks begin soon, and arrays travel
in pieces that pass a slow link in time."""


@contextlib.contextmanager
def home_folder(given: str | None) -> Iterator[Path]:
    """Provide a folder for Flower's files: the given one, which stays, or a temporary one.

    Yields:
        The folder.
    """
    if given is not None:
        folder = Path(given).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers() -> None:
    """Remove the temporary folders of commands that were killed: no process has locked them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            mine = folder.stat().st_uid == os.getuid() and not folder.is_symlink()
            if mine and time.time() - folder.stat().st_mtime > NEW_SECONDS and not _locked(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _locked(folder: Path) -> bool:
    """Return whether a command works in a folder."""
    if not (folder / LOCK).is_file():
        return False
    with (folder / LOCK).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of Flower's processes, with the commands in this Python's folder on the path.

    Args:
        home: Flower's folder.
        more: additional variables.
    """
    python_folder = str(Path(sys.executable).parent)
    path = os.pathsep.join([str(home / "bin"), python_folder, os.environ.get("PATH", "")])
    own = {"FLWR_HOME": str(home), "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor")}
    return {**os.environ, **QUIET, "PATH": path, "PYTHONUNBUFFERED": "1", **own, **more}


def descendants(process: int) -> list[int]:
    """Return the processes that a process has started, and those that these have started (Linux)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir() if sys.platform == "linux" else ():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = list(children.get(process, ()))
    for each in found:
        found += children.get(each, ())
    return found


def lives(process: int) -> bool:
    """Return whether a process runs; on Linux one that has ended, and that nobody has waited for, does not."""
    if sys.platform != "linux":
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, 0)
            return True
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class FlowerProcess:
    """A process of Flower and its children, in a separate process group, so that only this process gets Ctrl-C.

    The process ends when this process ends, even if this one is killed (Linux).

    Args:
        command: Flower's command and its arguments.
        log: file for the process's output.
        env: the process's environment.
    """

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.name, self.log = command[0] if command[0] != "-m" else command[1], log
        child = [sys.executable, "-P", str(CHILD), str(os.getpid()), *command]
        with log.open("ab") as file:
            self._begun = file.tell()
            self.process = subprocess.Popen(
                child, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=dict(env), start_new_session=True
            )

    def tell(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def stop(self, patience: float = PATIENCE_SECONDS) -> None:
        """End the process and its children, by SIGTERM and then by SIGKILL.

        Args:
            patience: seconds between the two signals.
        """
        others = descendants(self.process.pid)  # Flower's SuperLink puts its SuperExec into another group
        for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, KILL_SECONDS)):
            self.tell(number)
            for other in others if number == signal.SIGKILL else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, number)
            until = time.monotonic() + seconds
            while self._lives(others) and time.monotonic() < until:
                time.sleep(POLL_SECONDS / 4)
            if not self._lives(others):
                return

    def _lives(self, others: Sequence[int]) -> bool:
        self.process.poll()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 0)
            return True
        return any(map(lives, others))

    def last_words(self) -> str:
        """Return the reason of the process's end, or the last line of its output; and the path of its log."""
        size = self.log.stat().st_size
        with self.log.open("rb") as file:  # what this process has written, unless the log was cut since
            file.seek(max(self._begun if size >= self._begun else 0, size - LAST_BYTES))
            text = file.read().decode(errors="replace")
        if EXIT in text:
            reason = " ".join(text.rsplit(EXIT, 1)[1].split("For more information")[0].split())
        else:
            reason = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
        return f"{printable(COLOURS.sub('', reason))} ({printable(self.log)})"


def free_port() -> int:
    """Return a free port of the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def require_free(host: str, port: int) -> None:
    """Refuse a port that is in use.

    Raises:
        ConfigurationError: the port is in use, or the address is not one of this machine.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigurationError(f"Expected a free port but got {host}:{port}: {error.strerror}") from error


def wait_until(ready: Callable[[], bool], child: FlowerProcess, seconds: float) -> None:
    """Wait until a process is ready.

    Args:
        ready: returns whether it is.
        child: the process.
        seconds: how long to wait.

    Raises:
        ConfigurationError: the process ended, or is not ready in time.
    """
    until = time.monotonic() + seconds
    while not ready():
        if child.process.poll() is not None:
            raise ConfigurationError(f"Expected {child.name} to go on but it ended: {child.last_words()}")
        if time.monotonic() > until:
            raise ConfigurationError(f"Expected {child.name} within {seconds:g} s but got: {child.last_words()}")
        time.sleep(POLL_SECONDS)


def listens(host: str, port: int) -> bool:
    """Return whether a server listens at a port."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def certificate(folder: str, name: str) -> Path:
    """Return the path of a file in a folder of certificates and keys.

    Raises:
        ConfigurationError: there is no such file.
    """
    path = Path(folder).absolute() / name
    if not path.is_file():
        raise ConfigurationError(f"Expected {name} in the folder of certificates but got no such file: {path}")
    return path
