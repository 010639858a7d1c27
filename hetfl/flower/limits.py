"""What a round needs of links and memory, said before the first round.

The factors are measured (``benchmarks/flower_large.py``), and rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hetfl.federation import FederatedModule
from hetfl.flower.events import Reporter
from hetfl.flower.patience import PIECE_BYTES, PIECE_SECONDS, PIECES_AT_ONCE
from hetfl.part import Part
from hetfl.types import Task

MODEL_COPIES = 5
"""Copies of a round's models at the server: encoded, as objects of Flower, and at the SuperLink in several buffers."""
UPDATE_COPIES = 5
"""Copies of a round's updates at the server: at the SuperLink, pulled, as objects of Flower, assembled, and read."""
GLOBAL_COPIES = 10
"""Copies of the global models at the server: sums, means, gradients, the optimizer's state, nets of an evaluation."""
RECEIVED_COPIES = 5
"""Copies of a received model at its node: at the SuperNode, as objects of Flower, and decoded."""
TRAINED_COPIES = 12
"""Copies of a trained model at its node: the net, gradients, momenta, delta, residual, and what compressors need."""
ANSWER_COPIES = 3
"""Copies of an update at its node: encoded, as objects of Flower, and at the SuperNode."""


@dataclass(frozen=True)
class Needs:
    """What a round needs.

    Attributes:
        clients: that take part.
        models: bytes of the models that travel, each counted once.
        largest: bytes of the largest of them.
        updates: bytes of all updates, if every entry is sent.
        largest_update: bytes of the largest of them.
        global_models: bytes of the trained entries of all global models.
    """

    clients: int
    models: int
    largest: int
    updates: int
    largest_update: int
    global_models: int

    @staticmethod
    def of(module: FederatedModule, tasks: Sequence[Task]) -> Needs:
        """Return what a round with some tasks needs."""
        models, (down_bytes, up_bytes) = module.models, value_bytes(module)
        down = {(task.model, task.part.key): down_bytes * received(module, task.part).size for task in tasks}
        up = [up_bytes * task.sent.size for task in tasks]
        trained = sum(
            tensor.numel() for of in models.tensors for name, tensor in of.items() if name not in models.frozen
        )
        most_down, most_up = max(down.values(), default=0), max(up, default=0)
        return Needs(len(tasks), sum(down.values()), most_down, sum(up), most_up, down_bytes * trained)

    @property
    def memory(self) -> int:
        """The most bytes of memory that the round takes on the server's machine beside what is in use before."""
        return MODEL_COPIES * self.models + UPDATE_COPIES * self.updates + GLOBAL_COPIES * self.global_models

    def describe(self, deadline: float, patient: str = "--deadline") -> str:
        """Return one line.

        Args:
            deadline: seconds that nodes have.
            patient: the option that sets them.
        """
        pieces = min(max(self.largest, self.largest_update), PIECES_AT_ONCE * PIECE_BYTES)
        rate = max((self.largest + self.largest_update) / deadline, pieces / PIECE_SECONDS) / 1e3
        return (
            f"{self.clients} client{'' if self.clients == 1 else 's'}; models of {megabytes(self.models)} in all, up "
            f"to {megabytes(self.largest)} for a client; updates of up to {megabytes(self.updates)} in all, up to "
            f"{megabytes(self.largest_update)} of a client; a round takes up to {megabytes(self.memory)} of memory "
            f"here; within {patient} {deadline:g} s a client's link needs at least {rate:.3g} kB/s beside its training"
        )


def node_memory(module: FederatedModule) -> tuple[int, int]:
    """Return the most bytes that a round takes on a node's machine beside what is in use before, at the largest level.

    Returns:
        For one client, and for each further client of the node in the same round, whose updates wait for the others.
    """
    part, (down_bytes, up_bytes) = module.levels.indices[module.levels.largest], value_bytes(module)
    trained = module.models.unfrozen(part).size
    update = ANSWER_COPIES * up_bytes * trained
    return down_bytes * (RECEIVED_COPIES * received(module, part).size + TRAINED_COPIES * trained) + update, update


def received(module: FederatedModule, part: Part) -> Part:
    """Return the entries of a part that its client is sent."""
    return module.models.unfrozen(part) if module.downloads.preinstalled else part


def value_bytes(module: FederatedModule) -> tuple[int, int]:
    """Return the most bytes of a value that is sent to a client, and of one that a client sends."""
    width = module.models.like.dtype.itemsize
    return width, 2 if module.uplink.half_precision else width


def megabytes(size: int) -> str:
    """Return a number of bytes for people, with three digits or more.

    >>> megabytes(1_250), megabytes(2_998_000_000)
    ('0.00125 MB', '2,998 MB')
    """
    return f"{size / 1e6:,.0f} MB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def report_memory(report: Reporter, needed: int, node: str = "") -> None:
    """Report if this machine has less memory than may be needed."""
    if (available := available_memory()) is not None and needed > available:
        text = f"{megabytes(available)} are available here, but up to {megabytes(needed)} may be needed"
        report("memory", text, node)


def available_memory() -> int | None:
    """Return the bytes of memory that are available; None: the system does not say (Linux does)."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    lines = [line.split() for line in path.read_text(encoding="ascii", errors="replace").splitlines()]
    return next((1024 * int(words[1]) for words in lines if words[:1] == ["MemAvailable:"]), None)
