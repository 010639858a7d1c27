"""What a file format must do: turn a net into bytes, and bytes into something that predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from hetfl.export.card import Card
from hetfl.tree import Tree
from hetfl.types import NetFactory

Predict = Callable[[nn.Module, Tree], Tensor]
"""What a method makes of a net and a batch (N, ...): logits (N, K) (:meth:`hetfl.FederatedModule.predict`)."""


class Format(ABC):
    """A file format for one sub-model.

    Attributes:
        name: the format's name, and the suffix of its files.
        tolerance: how far outputs of the loaded file may be from the net's, in units of the largest output (or of 1, if
            that is larger); 0: the same bits.
        builds: whether loading needs what makes the net.
    """

    name: ClassVar[str]
    tolerance: ClassVar[float]
    builds: ClassVar[bool] = False

    def require(self, *, writing: bool) -> None:
        """Check that the packages are there that loading, or ``writing`` as well, needs; by default none.

        Raises:
            ConfigurationError: one is missing; names it, and what installs it.
        """

    @abstractmethod
    def encode(self, net: nn.Module, predict: Predict, inputs_N: Tree) -> bytes:
        """Return the file.

        Args:
            net: the sub-model, on the CPU and in evaluation mode.
            predict: what its method makes of it.
            inputs_N: a batch of at least two samples, as the net gets them.

        Raises:
            ConfigurationError: the format cannot hold this net.
        """

    @abstractmethod
    def decode(self, data: bytes, card: Card, net: NetFactory | None) -> nn.Module:
        """Return what the file holds, in evaluation mode; nothing in the file may run code of its own.

        Args:
            data: the file.
            card: what is known about it.
            net: the user's constructor; None: the net is made from the card.

        Raises:
            ConfigurationError: the file is not what it should be.
        """

    def outputs(self, net: nn.Module, predict: Predict, inputs_N: Tree) -> Tensor:
        """Return what the loaded file must return for a batch: by default the prediction, shape (N, K)."""
        return predict(net, inputs_N)


def reason(error: BaseException) -> str:
    """Return the first line that an exception says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
