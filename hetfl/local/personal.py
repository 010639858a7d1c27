"""Personal tensors: they stay with their client, are neither sent nor downloaded, and are kept between rounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.part import Part
from hetfl.piece import Piece
from hetfl.store import ClientStore, MemoryStore
from hetfl.types import Task


class Personal(Piece):
    """The personal tensors of clients, chosen by patterns of tensors' names.

    A client begins with the global model's initial values of these tensors. The global model keeps the initial values,
    as no client sends an update of them. The store has the difference between each client's values and the initial
    ones, in global coordinates. So a client that changes its level keeps the entries that both levels have.

    Args:
        names: patterns of names, as :mod:`fnmatch` reads them: ``["classifier.*"]`` for FedPer, ``["*norm*"]`` for
            FedBN; empty: no tensor is personal.
        store: the store of the differences; default: in memory.
    """

    for_evaluation: ClassVar[bool] = True

    def __init__(self, names: Sequence[str] = (), store: ClientStore | None = None) -> None:
        self.names, self.store = list(names), MemoryStore() if store is None else store

    @classmethod
    def given(cls, personal: Personal | Sequence[str] | None) -> Personal:
        """Return the object for a setting: itself, or one with an in-memory store for patterns of names."""
        return personal if isinstance(personal, Personal) else cls(personal or ())

    def among(self, tensors: Iterable[str]) -> frozenset[str]:
        """Return the names of the personal tensors among ``tensors``.

        Raises:
            ConfigurationError: a pattern matches no tensor, or all tensors are personal.
        """
        tensors = list(tensors)
        for pattern in self.names:
            if not any(fnmatchcase(name, pattern) for name in tensors):
                raise ConfigurationError(
                    f"Expected patterns of personal that match tensors, such as {tensors[0]!r}, but got {pattern!r}"
                )
        personal = frozenset(name for name in tensors for pattern in self.names if fnmatchcase(name, pattern))
        if len(personal) == len(tensors):
            raise ConfigurationError("Expected tensors of the net that are not personal but got none")
        return personal

    def of(self, client: int, part: Part, like: Tensor) -> Tensor | None:
        """Return a client's personal entries of a part minus the initial ones, shape (D,); None: all zero."""
        return self.store.read(client, part, like) if self.names and part else None

    def added_to(self, task: Task, part: Part, like: Tensor) -> Task:
        """Return a task with its client's personal entries of a part; unchanged if they are all zero."""
        personal_D = self.of(task.owner, part, like)
        return task if personal_D is None else replace(task, personal=personal_D)

    def keep(self, client: int, part: Part, vector: Tensor, round: int) -> None:
        """Store a client's personal entries of a part minus the initial ones, shape (D,), as of a round."""
        self.store.write(client, part, vector, round)

    def bind(self, folder: str | None) -> None:  # noqa: D102
        self.store.bind(folder)

    def find(self, folder: str) -> None:  # noqa: D102
        self.store.find(folder)

    def describe(self) -> str:
        """Return the patterns and the store; an empty text if there are no patterns."""
        return f"{self.names} in {self.store.describe()}" if self.names else ""

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return self.store.state_dict() if self.names else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        if state:
            self.store.load_state_dict(state)

    def checkpointed(self) -> None:  # noqa: D102
        self.store.checkpointed()
