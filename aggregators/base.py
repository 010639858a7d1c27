"""What an aggregator is: torchmetrics' verbs over updates."""

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

    With several global models there is one of each: copies of the one that the module is given, as it was given.
    """

    asks_losses: ClassVar[bool] = False
    """Whether reports must hold the loss of the model that was sent; it costs a pass over the clients' data."""

    by_size: ClassVar[bool] = False
    """Whether an update counts in proportion to its client's number of samples."""

    @abstractmethod
    def reset(self, tensors: Mapping[str, Tensor]) -> None:
        """Begin a round.

        Args:
            tensors: the global model's tensors by name, for their shapes, type and device; they are only read.
        """

    @abstractmethod
    def update(self, update: Update, index: Index, report: Report) -> None:
        """Take one client's update.

        Args:
            update: what the server decoded; its vector, then its exact block, lie in the order of ``index``.
            index: the global entries that the client holds and speaks for; if it has a mask, those of the mask alone.
            report: what is known of the client's training.

        Raises:
            RefusedUpdate: it cannot be added up; nothing was.
        """

    @abstractmethod
    def compute(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return per global tensor the step delta, and the number (or weight) of holders of each entry.

        Entries without holders have delta 0 and holders 0: they must keep their value.
        """


def check_step(step: Any, tensors: Mapping[str, Tensor], name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what :meth:`Aggregator.compute` returned, once it is known to be steps and holders of tensors.

    Args:
        step: the two mappings.
        tensors: the global tensors that are stepped, by name.
        name: of the aggregator, for messages.

    Raises:
        ConfigurationError: it is something else; a tensor is missing; a shape, or the dtype of a step, is another one.
    """
    if not isinstance(step, tuple) or len(step) != 2 or not all(isinstance(each, Mapping) for each in step):
        got = f"{len(step)} values" if isinstance(step, tuple) and len(step) != 2 else type(step).__name__
        raise ConfigurationError(f"Expected two dicts, steps and holders, from {name}.compute but got {got}")
    for what, values in zip(("a step", "holders"), step, strict=True):
        for key, tensor in tensors.items():
            value = values.get(key)
            got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            wrong = not isinstance(value, Tensor) or value.shape != tensor.shape
            if wrong or (what == "a step" and value.dtype != tensor.dtype):
                raise ConfigurationError(
                    f"Expected {what} of {tensor.dtype} {tuple(tensor.shape)} for {key!r} from {name}.compute but got "
                    f"{got}"
                )
    return step
