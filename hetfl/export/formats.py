"""The base class of file formats: encoding of a net to bytes, and decoding of bytes to a module that predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from hetfl.export.card import Card
from hetfl.tree import Tree
from hetfl.types import NetFactory

Predict = Callable[[nn.Module, Tree], Tensor]
"""The prediction of a method for a net and a batch (N, ...): logits (N, K) (:meth:`hetfl.FederatedModule.predict`)."""


class Format(ABC):
    """A file format for one sub-model.

    Attributes:
        name: name of the format, and suffix of its files.
        tolerance: largest difference between outputs of the loaded file and of the net, relative to the largest output
            (or to 1 if that is larger); 0: the same bits.
        builds: whether loading needs a constructor of the net.
    """

    name: ClassVar[str]
    tolerance: ClassVar[float]
    builds: ClassVar[bool] = False

    def require(self, *, writing: bool) -> None:
        """Check that the packages for loading, or for ``writing`` too, are installed; by default none are needed.

        Raises:
            ConfigurationError: a package is missing; the message has the command that installs it.
        """

    @abstractmethod
    def encode(self, net: nn.Module, predict: Predict, inputs_N: Tree) -> bytes:
        """Return the contents of the file.

        Args:
            net: the sub-model, on the CPU and in evaluation mode.
            predict: the prediction of its method.
            inputs_N: a batch of at least two samples, in the form that the net takes.

        Raises:
            ConfigurationError: the format does not support this net.
        """

    @abstractmethod
    def decode(self, data: bytes, card: Card, net: NetFactory | None) -> nn.Module:
        """Return the net or the prediction in a file, in evaluation mode, without running code from the file.

        Args:
            data: contents of the file.
            card: the card of the file.
            net: the user's constructor; None: the net is built from the card.

        Raises:
            ConfigurationError: the contents are not valid.
        """

    def outputs(self, net: nn.Module, predict: Predict, inputs_N: Tree) -> Tensor:
        """Return the expected outputs of the loaded file for a batch; by default the prediction, shape (N, K)."""
        return predict(net, inputs_N)


def reason(error: BaseException) -> str:
    """Return the first line of the message of an exception, or else its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
