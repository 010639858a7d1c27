"""Terms of the local objective beside the loss: they pull a client towards where it began, or remember where it was."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.hooks import Hook
from hetfl.layout import Index
from hetfl.store import ClientStore
from hetfl.updates import Update

LARGEST = 1e6
"""The largest weight of a penalty."""


class Penalty(Hook):
    """Adds gradients to those of the local loss, before clipping; it may remember each client, and the server's steps.

    A penalty knows no method: it acts on vectors of trained parameters in sub-model coordinates. What it keeps follows
    what was *sent*: a refused update changes nothing, and a compressed one counts as the server decoded it. Its
    server's half, if it has one, is that of a :class:`~hetfl.hooks.Hook`: it acts on the step before all other hooks.

    Attributes:
        memories: where it keeps what it remembers of clients; None: nothing.
    """

    files: ClassVar[str] = "memories"
    memories: ClientStore | None = None

    @abstractmethod
    def add_gradient(self, grad_D: Tensor, theta_D: Tensor, anchor_D: Tensor, memory_D: Tensor | None) -> None:
        """Add the penalty's gradient in place.

        Args:
            grad_D: the gradient so far, shape (..., D).
            theta_D: the client's parameters, shape (..., D).
            anchor_D: the parameters that it began the round with, shape (D,).
            memory_D: what :meth:`memory` returned for the client, shape (..., D); None if all zero.
        """

    def memory(self, client: int, index: Index, like: Tensor) -> Tensor | None:
        """Return what is kept of a client at an index, shape (D,), for its next round; None if all zero."""
        return None

    def remember(self, client: int, round: int, index: Index, update: Update) -> None:
        """Learn, at the client, its update that the server took, as decoded. By default nothing."""


class NoPenalty(Penalty):
    """The local loss alone."""

    def describe(self) -> str:  # noqa: D102
        return "none"

    def add_gradient(  # noqa: D102
        self, grad_D: Tensor, theta_D: Tensor, anchor_D: Tensor, memory_D: Tensor | None
    ) -> None:
        pass


class Proximal(Penalty):
    r"""FedProx: stay near the global model (Li et al., MLSys 2020, arXiv 1812.06127, section 3.2).

    .. math:: \min_\theta f_k(\theta) + \frac{\mu}{2} \lVert \theta - \theta_t \rVert^2

    Its other half, counting the partial work of stragglers, is ``stragglers`` of
    :class:`~hetfl.local.LocalTraining`.

    Args:
        proximal_mu: the weight μ.

    Raises:
        ConfigurationError: μ is not positive, or so large that float32 cannot hold the gradient.
    """

    def __init__(self, proximal_mu: float) -> None:
        if not 0 < proximal_mu <= LARGEST:
            raise ConfigurationError(f"Expected proximal_mu above 0 and at most {LARGEST:g} but got {proximal_mu}")
        self.proximal_mu = proximal_mu

    def add_gradient(  # noqa: D102
        self, grad_D: Tensor, theta_D: Tensor, anchor_D: Tensor, memory_D: Tensor | None
    ) -> None:
        grad_D.add_(theta_D - anchor_D, alpha=self.proximal_mu)
