"""Pieces: the objects with a state during a run, and their lifecycle."""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import Any, ClassVar, Protocol

from torch import Generator, Tensor, nn

from hetfl.arguments import keep_arguments
from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.question import ClientProbe
from hetfl.types import Range, Report, Task
from hetfl.updates import Update


class ServerData(Protocol):
    """The server's samples."""

    def __len__(self) -> int: ...

    def batch(self, positions: Tensor) -> tuple[Any, Tensor]:
        """Return the inputs of nets in an evaluation, and the targets, of the samples at positions, int64."""
        ...


class Tuning(Protocol):
    """Trains the first global model on the server's samples by plain SGD."""

    def __call__(
        self, tensors: Mapping[str, Tensor], lr: float, epochs: int, batch_size: int, random: Generator
    ) -> dict[str, Tensor]:
        """Return the trained parameters by name, from given values; see :class:`hetfl.trainer.utility.Utility`."""
        ...


@dataclass(frozen=True)
class Facts:
    """The facts of a federation that are known before its first round.

    Attributes:
        sizes: number of training samples of each client.
        seed: of every random choice.
        levels: names of the levels, the largest first.
        rounds: number of rounds of the run; None: there are no rounds, only an evaluation.
        parameters: the trained parameters of the first global model by name.
        shared: names of the tensors that all global models share.
        masks: whether clients' parts may have a mask.
        frozen: parameters that are not trained, by name.
        sparse: whether updates may leave entries out, which then count as 0.
        remembers: what clients keep between rounds in the coordinates of the model, in words: residuals, memories, or
            both; empty: nothing.
        apart: whether clients have a separate state for each global model.
        server_data: the server's samples; None for pieces that do not declare that they read them.
        client_names: the user's name of each client; None: clients have no names.
        lrs: the clients' learning rate γ_t of every round of the run; empty: there are no rounds.
        held_out: number of samples that each client holds out of its training samples; empty: no client does.
        cohort: number of clients whose updates a round should have, if all are within reach.
        utility: returns the score, the larger the better, and the loss, of parameters by name on the server's samples;
            None for pieces that do not declare that they read them.
        tuning: trains the first global model on the server's samples; None like ``utility``.
        classes: number K of classes; 0: targets are not classes.
        server_training: returns what local training on the server's samples changes of a global model's tensors, by
            name, given the round, γ_t, the epochs (None: as clients) and the number of the model; None as ``utility``.
        epochs: number E of a client's passes over its data in a round.
        models: the present global models; a run may add further ones.
        personal: names of the tensors that stay with their client.
        scales: returns by level the factor s of the product of each layer with low-rank adapters, by name.
    """

    sizes: Sequence[int] = ()
    seed: int = 0
    levels: Sequence[str] = ()
    rounds: int | None = None
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()
    masks: bool = False
    frozen: Mapping[str, Tensor] = field(default_factory=dict)
    sparse: bool = False
    remembers: str = ""
    apart: bool = False
    server_data: ServerData | None = None
    client_names: Sequence[str | int] | None = None
    lrs: Sequence[float] = ()
    held_out: Sequence[int] = ()
    cohort: int = 0
    utility: Callable[[Mapping[str, Tensor]], tuple[float, float]] | None = None
    tuning: Tuning | None = None
    classes: int = 0
    server_training: Callable[[int, float, int | None, int], Mapping[str, Tensor]] | None = None
    epochs: int = 1
    models: nn.ModuleList = field(default_factory=nn.ModuleList)
    personal: frozenset[str] = frozenset()
    scales: Callable[[], Mapping[str, Mapping[str, float]]] = dict

    @property
    def num_clients(self) -> int:
        """Number N of all clients."""
        return len(self.sizes)

    def known_to(self, piece: Piece) -> Facts:
        """Return the facts for a piece; only pieces that declare that they read the server's data get it.

        Raises:
            ConfigurationError: the piece reads the server's data, and there is none.
        """
        if not piece.reads_server_data:
            return replace(self, server_data=None, utility=None, tuning=None, server_training=None)
        if self.server_data is None:
            raise ConfigurationError(
                f"Expected data.server_fraction above 0 for {piece.describe()}, which reads the server's data, "
                "but got 0"
            )
        return self


class Piece(ABC):  # noqa: B024
    """An object with a state during a run. The module calls these methods of all pieces; by default they do nothing.

    A piece that is an attribute of a :class:`hetfl.FederatedModule` takes part in the run under the attribute's name.
    The order is: :meth:`setup`, :meth:`bind`, :meth:`load_state_dict` in a resumed run, :meth:`begin`; then for every
    round :meth:`begin_round`, :meth:`inquire`, :meth:`observe` or :meth:`miss` once per task, :meth:`client_values`,
    :meth:`end_round`, :meth:`columns`.
    """

    for_evaluation: ClassVar[bool] = False
    """Whether validate and test load the piece's state from a checkpoint; a resumed run loads every piece's."""

    files: ClassVar[str] = ""
    """Name of the piece's folder in the run's folder; empty: the piece's name."""

    reads_server_data: bool = False
    """Whether :meth:`setup` gets the server's samples among the facts; if there are none, the piece is refused."""

    asks_clients: bool = False
    """Whether :meth:`inquire` asks clients questions, which nodes on Flower do not answer."""

    def __init_subclass__(cls, **settings: Any) -> None:
        """Let objects of a subclass keep the arguments that they were made with."""
        super().__init_subclass__(**settings)
        keep_arguments(cls)

    def members(self) -> dict[str, Piece]:
        """Return by name further pieces of the run; their full names are this piece's name, a dot and their name."""
        return {}

    def setup(self, facts: Facts) -> None:
        """Set the facts of the federation, before a checkpoint is loaded. May be called again with other facts.

        Raises:
            ConfigurationError: the piece does not work with these facts.
        """

    def bind(self, folder: str | None) -> None:
        """Set the folder in which the piece may keep files; None: there is none."""

    def find(self, folder: str) -> None:
        """Set the folder in which a run kept the piece's files, before an evaluation loads the run's checkpoint."""

    def begin(self) -> None:
        """Prepare for rounds, after a checkpoint was loaded and the models are on their device. Reset nothing."""

    def begin_round(self, round: int, lr: float) -> None:
        """Begin a round.

        Args:
            round: its number, from 0.
            lr: the clients' learning rate γ_t.
        """

    def inquire(self, round: int, cohort: Sequence[int], probe: ClientProbe) -> None:
        """Ask clients about their data before they train; the round is charged. By default nothing is asked.

        Args:
            round: the round.
            cohort: the clients that will train.
            probe: asks clients.
        """

    def observe(self, update: Update, index: Index, report: Report) -> None:
        """Observe an update that the server accepted, in the order of the cohort.

        Args:
            update: the decoded update.
            index: positions of its entries in the global model: the sent parameters, then the float buffers. If the
                part has a mask, the update has only the held entries.
            report: the client's report, completed by the server.
        """

    def miss(self, task: Task, late: bool) -> None:
        """Note a task without an accepted update: its client was late, failed or was refused.

        Args:
            task: the client, its level, its model and the round.
            late: whether the reason was time: the update missed a deadline.
        """

    def extras(self) -> dict[str, Range]:
        """Return by name the ranges of the extra numbers that the piece reads in reports.

        The server accepts a report only with exactly the extras that all pieces declare, each in its range.
        """
        return {}

    def end_round(self, round: int) -> None:
        """End a round, after the server's step."""

    def settings(self) -> dict[str, object]:
        """Return by name the settings that change results; by default the constructor's arguments that it keeps."""
        return settings_of(self)

    def describe(self) -> str:
        """Return the piece and its settings as short text, which a resumed run compares with the checkpoint's."""
        return described(type(self).__name__, self.settings())

    def columns(self) -> dict[str, float]:
        """Return the piece's columns of ``metrics.csv`` for the round that has ended."""
        return {}

    def client_values(self) -> dict[str, Mapping[int, float]]:
        """Return by measure the values of clients, by id, for ``values.csv``; all updates of the round were observed.

        It is called after the server's step, and before :meth:`end_round`.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a resumed run, as plain types and tensors."""
        return {}

    def evaluation_state(self) -> dict[str, Any]:
        """Return the state for an evaluation, for checkpoints of weights only, if ``for_evaluation`` is true."""
        return self.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state that :meth:`state_dict` returned."""

    def checkpointed(self) -> None:
        """Called once a checkpoint with the last :meth:`state_dict` is on the disk, from which the run may resume."""


def declared_extras(pieces: Sequence[Piece]) -> dict[str, Range]:
    """Return by name the ranges of the extra numbers that pieces read in reports.

    Raises:
        ConfigurationError: two pieces declare different ranges of one number.
    """
    extras: dict[str, Range] = {}
    for piece in pieces:
        for name, range in piece.extras().items():
            if extras.setdefault(name, range) != range:
                raise ConfigurationError(
                    f"Expected one range of extra {name} but {type(piece).__name__} declares {range}, "
                    f"and another piece declares {extras[name]}"
                )
    return extras


def unused(name: str, taken: Container[str]) -> str:
    """Return a name that is not taken: the name itself, or with ``_2``, ``_3`` and so on.

    >>> unused("TopK", ["TopK", "TopK_2"]), unused("TopK", [])
    ('TopK_3', 'TopK')
    """
    numbered = (f"{name}_{number}" for number in count(2))
    return next(each for each in chain([name], numbered) if each not in taken)


def settings_of(part: object, less: Iterable[str] = ()) -> dict[str, object]:
    """Return the constructor's arguments that an object keeps as attributes of the same names.

    Args:
        part: an object.
        less: names of arguments to leave out.
    """
    names = [name for name in inspect.signature(type(part)).parameters if name not in set(less)]
    return {name: getattr(part, name) for name in names if hasattr(part, name)}


def described(name: str, settings: Mapping[str, object]) -> str:
    """Return a name and its settings as short text: plain values, and the descriptions of objects that have one.

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
