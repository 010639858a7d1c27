"""What a round needs of links and memory, said before the first round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hetfl.types import Task

COPIES = 4
"""Copies of a round's models in this machine's memory: encoded, as objects of Flower, at the SuperLink, as answers."""


def needs(tasks: Sequence[Task], value_bytes: int, deadline: float, patient: str = "--deadline") -> tuple[str, int]:
    """Return what a round needs, and the bytes of memory that its models take on the server's machine.

    Args:
        tasks: of the round.
        value_bytes: bytes of a value.
        deadline: seconds that nodes have.
        patient: the option that sets them.
    """
    sizes = {(task.model, task.part.key): value_bytes * task.part.size for task in tasks}
    total, largest = sum(sizes.values()), max(sizes.values(), default=0)
    memory = COPIES * total
    text = (
        f"{len(tasks)} clients; models of {total / 1e6:.3g} MB in all, up to {largest / 1e6:.3g} MB for a client; "
        f"this machine holds up to {memory / 1e6:.3g} MB of them; within {patient} {deadline:g} s a client's "
        f"link needs at least {largest / deadline / 1e3:.3g} kB/s beside its training"
    )
    return text, memory


def available_memory() -> int | None:
    """Return the bytes of memory that are available; None: the system does not say (Linux does)."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    lines = [line.split() for line in path.read_text(encoding="ascii", errors="replace").splitlines()]
    return next((1024 * int(words[1]) for words in lines if words[:1] == ["MemAvailable:"]), None)
