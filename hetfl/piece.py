"""The lifecycle of whatever keeps a state during a run."""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.types import Range, Report
from hetfl.updates import Update


class ServerData(Protocol):
    """The samples that the server has of its own."""

    def __len__(self) -> int: ...

    def batch(self, positions: Tensor) -> tuple[Any, Tensor]:
        """Return inputs as nets take them in an evaluation, and targets, of the samples at some positions, int64."""
        ...


@dataclass(frozen=True)
class Facts:
    """What is known of a federation before its first round.

    Attributes:
        sizes: number of training samples of each client.
        seed: of every random choice.
        levels: names of the levels, the largest first.
        rounds: number of rounds of the run; None: no round is run, only an evaluation.
        parameters: the trained parameters of the first global model by name.
        shared: names of the tensors that are one for all global models.
        masks: whether clients' parts may have a mask.
        frozen: parameters that nobody trains, by name.
        apart: whether clients keep a state for each global model.
        server_data: the server's own samples; None for pieces that do not declare that they read them.
        client_names: what the user calls each client; None: as its number.
        lrs: the clients' learning rate γ_t of every round of the run; empty: no round is run.
        cohort: number of clients that take part in a round, if all are within reach.
    """

    sizes: Sequence[int] = ()
    seed: int = 0
    levels: Sequence[str] = ()
    rounds: int | None = None
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()
    masks: bool = False
    frozen: Mapping[str, Tensor] = field(default_factory=dict)
    apart: bool = False
    server_data: ServerData | None = None
    client_names: Sequence[str | int] | None = None
    lrs: Sequence[float] = ()
    cohort: int = 0

    @property
    def num_clients(self) -> int:
        """Number N of all clients."""
        return len(self.sizes)

    def known_to(self, piece: Piece) -> Facts:
        """Return the facts for a piece: the server's data is for those that declare that they read it.

        Raises:
            ConfigurationError: the piece reads it, and there is none.
        """
        if not piece.reads_server_data:
            return replace(self, server_data=None)
        if self.server_data is None:
            raise ConfigurationError(
                f"Expected data.server_fraction above 0 for {piece.describe()}, which reads the server's data, "
                "but got 0"
            )
        return self


class Piece(ABC):  # noqa: B024
    """A part of a run that keeps a state. The module calls these verbs on all its pieces; by default they do nothing.

    A piece that is an attribute of a :class:`hetfl.FederatedModule` takes part in the run under the attribute's name.
    The order is: :meth:`setup`, :meth:`bind`, :meth:`load_state_dict` in a resumed run, :meth:`begin`; then for every
    round :meth:`begin_round`, :meth:`observe` once per accepted update, :meth:`end_round`, :meth:`columns`.
    """

    for_evaluation: ClassVar[bool] = False
    """Whether validate and test load its state from a checkpoint; a run that goes on loads every piece's."""

    files: ClassVar[str] = ""
    """Name of its folder in the run's folder; empty: its own name."""

    reads_server_data: bool = False
    """Whether :meth:`setup` gets the server's own samples among the facts; without any the piece is refused."""

    def members(self) -> dict[str, Piece]:
        """Return by name further pieces that take part in the run under this piece's name, a dot and theirs."""
        return {}

    def setup(self, facts: Facts) -> None:
        """Learn the facts of the federation, before a checkpoint is loaded. It may be called again, with other facts.

        Raises:
            ConfigurationError: the piece does not go with them.
        """

    def bind(self, folder: str | None) -> None:
        """Learn the folder of this run where the piece may keep files; None: it has none."""

    def begin(self) -> None:
        """Get ready for rounds, once a checkpoint has been loaded and the models are on their device. Reset nothing."""

    def begin_round(self, round: int, lr: float) -> None:
        """Begin a round.

        Args:
            round: its number, from 0.
            lr: the clients' learning rate γ_t.
        """

    def observe(self, update: Update, index: Index, report: Report) -> None:
        """Learn from an update that the server accepted, in the order of the cohort.

        Args:
            update: what the server decoded.
            index: where its entries lie in the global model: what the client sent, parameters and then float buffers.
                If it has a mask, only the entries that are held are in the update.
            report: what is known of the client's training.
        """

    def extras(self) -> dict[str, Range]:
        """Return by name the ranges of the further numbers in a report that the piece reads.

        The server takes a report if it has exactly the extras that the pieces declare, each in its range.
        """
        return {}

    def end_round(self, round: int) -> None:
        """Close a round after the server's step."""

    def settings(self) -> dict[str, object]:
        """Return by name the settings that results depend on: by default the constructor's arguments that it keeps."""
        return settings_of(self)

    def describe(self) -> str:
        """Return the piece with its settings in short text, by which a checkpoint knows it again."""
        return described(type(self).__name__, self.settings())

    def columns(self) -> dict[str, float]:
        """Return the piece's columns of ``metrics.csv`` for the round that was closed."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, in plain types and tensors."""
        return {}

    def evaluation_state(self) -> dict[str, Any]:
        """Return what an evaluation needs, for checkpoints of weights only; asked if it is ``for_evaluation``."""
        return self.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""

    def checkpointed(self) -> None:
        """Learn that a checkpoint with the last :meth:`state_dict` is on the disk."""


def settings_of(part: object, less: Iterable[str] = ()) -> dict[str, object]:
    """Return the constructor's arguments that an object keeps under their names.

    Args:
        part: an object.
        less: names of arguments to leave out.
    """
    names = [name for name in inspect.signature(type(part)).parameters if name not in set(less)]
    return {name: getattr(part, name) for name in names if hasattr(part, name)}


def described(name: str, settings: Mapping[str, object]) -> str:
    """Return a name and its settings in short text: plain values, and what has a description.

    >>> described("TopK", {"density": 0.05})
    'TopK(density=0.05)'
    """
    texts = {key: value.describe() if hasattr(value, "describe") else value for key, value in settings.items()}
    return f"{name}({', '.join(f'{key}={text}' for key, text in texts.items() if _plain(text))})"


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_plain(item) for item in value)
    if isinstance(value, Mapping):
        return all(_plain(item) for item in value.values())
    return value is None or isinstance(value, bool | int | float | str)
