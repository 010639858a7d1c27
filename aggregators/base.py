"""The base class of aggregators, with the methods of torchmetrics: reset, update, compute."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.piece import Piece
from hetfl.types import Report
from hetfl.updates import Update


class Aggregator(Piece):
    """Takes the round's accepted updates one by one, in cohort order, and returns one step for the global model.

    With several global models each has its own aggregator, a copy of the one that the module was given. Their columns
    are added, but for the smallest ``…/lowest`` and the largest ``…/highest``.
    """

    asks_losses: ClassVar[bool] = False
    """Whether reports must have the loss of the downloaded model; it costs a pass over the clients' data."""

    by_size: ClassVar[bool] = False
    """Whether an update is weighted by its client's number of samples."""

    takes_sparse: ClassVar[bool] = True
    """Whether updates may leave entries out, which then count as 0; if not, such an update is refused."""

    takes_stale: ClassVar[bool] = True
    """Whether clients may have begun with older global models; if not, schedules without common rounds are refused."""

    changes_frozen: ClassVar[bool] = False
    """Whether steps may move frozen parameters, which clients then change by :meth:`shared_bytes` of their own."""

    def shared_bytes(self, client: int) -> int:
        """Return the bytes that a client is sent beside its part; by default none.

        It may be called several times in a round for a client that takes part in it.
        """
        return 0

    @abstractmethod
    def reset(self, tensors: Mapping[str, Tensor]) -> None:
        """Begin a round.

        Args:
            tensors: the global model's tensors by name, for their shapes, dtype and device; do not modify them.
        """

    @abstractmethod
    def update(self, update: Update, index: Index, report: Report) -> None:
        """Add one client's update.

        Args:
            update: the decoded update; its vector, then its float buffers, are in the order of ``index``.
            index: the part that the client sends, whose entries it counts as a holder of; with a mask, only the held
                ones.
            report: the client's report, completed by the server.

        Raises:
            RefusedUpdate: the update cannot be added up; the sums have not changed.
        """

    @abstractmethod
    def compute(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return by name of a global tensor the step Δ, and the number (or weight) of holders of each entry.

        Entries without holders have Δ = 0 and 0 holders: they keep their value.
        """


def check_step(step: Any, tensors: Mapping[str, Tensor], name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the result of :meth:`Aggregator.compute` after a check.

    Args:
        step: the result: steps and holders by name.
        tensors: the global tensors that are stepped, by name.
        name: of the aggregator's class, for messages.

    Raises:
        ConfigurationError: the result is no pair of mappings, a tensor is missing, or a shape or the dtype of a step
            is wrong.
    """
    if not isinstance(step, tuple) or len(step) != 2 or not all(isinstance(each, Mapping) for each in step):
        got = f"{len(step)} values" if isinstance(step, tuple) and len(step) != 2 else type(step).__name__
        raise ConfigurationError(f"Expected two dicts, steps and holders, from {name}.compute but got {got}")
    for kind, values in zip(("a step", "holders"), step, strict=True):
        for key, tensor in tensors.items():
            value = values.get(key)
            got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            wrong = not isinstance(value, Tensor) or value.shape != tensor.shape
            if wrong or (kind == "a step" and value.dtype != tensor.dtype):
                raise ConfigurationError(
                    f"Expected {kind} of {tensor.dtype} {tuple(tensor.shape)} for {key!r} from {name}.compute but got "
                    f"{got}"
                )
    return step
