"""Penalties: terms of the local objective beside the loss, with or without memory."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.hooks import Hook
from hetfl.layout import Index, Layout
from hetfl.store import ClientStore
from hetfl.updates import Update

LARGEST = 1e6
"""The largest weight of a penalty."""


class Penalty(Hook):
    """Adds a gradient to that of the local loss, before clipping; may have memories of clients and of the server.

    A penalty does not depend on the method: it acts on vectors of trained parameters in sub-model coordinates, of one
    client or of several at once. It may also change the parameters after each step of the optimizer. Memories
    are computed from *decoded* updates: a refused update changes nothing, and a compressed one counts as decoded. The
    server's term, if there is one, is :meth:`~hetfl.hooks.Hook.on_step`; it acts before all other hooks.

    Attributes:
        memories: the store of the clients' memories; None: the penalty has none.
    """

    files: ClassVar[str] = "memories"
    memories: ClientStore | None = None

    @abstractmethod
    def add_gradient(
        self, grad_D: Tensor, theta_D: Tensor, anchor_D: Tensor, memory_D: Tensor | None, layout: Layout
    ) -> None:
        """Add the penalty's gradient in place.

        Args:
            grad_D: the gradient so far, shape (..., D).
            theta_D: the client's parameters, shape (..., D).
            anchor_D: the client's parameters at the start of the round, shape (D,).
            memory_D: the client's memory, as returned by :meth:`memory`, shape (..., D); None if all zero.
            layout: the tensors in a vector. The rows of a tensor, which are its first dimension, lie one after the
                other; the order within a row depends on the executor.
        """

    def after_step(self, theta_D: Tensor, lr: float, layout: Layout) -> None:
        """Change the parameters in place after a step of the optimizer. By default does nothing.

        Entries that a client does not hold are zero and must stay zero.

        Args:
            theta_D: the client's parameters, shape (..., D).
            lr: the clients' learning rate γ of the round.
            layout: as in :meth:`add_gradient`.
        """

    def memory(self, client: int, index: Index, like: Tensor) -> Tensor | None:
        """Return a client's memory at an index, shape (D,), for its next round; None if all zero."""
        return None

    def remember(self, client: int, round: int, index: Index, update: Update) -> None:
        """Update a client's memory with its accepted, decoded update; runs at the client. By default does nothing."""


class NoPenalty(Penalty):
    """The local loss alone."""

    def describe(self) -> str:  # noqa: D102
        return "none"

    def add_gradient(  # noqa: D102
        self, grad_D: Tensor, theta_D: Tensor, anchor_D: Tensor, memory_D: Tensor | None, layout: Layout
    ) -> None:
        pass


class Proximal(Penalty):
    r"""FedProx: stay near the global model (Li et al., MLSys 2020, arXiv 1812.06127, section 3.2).

    .. math:: \min_\theta f_k(\theta) + \frac{\mu}{2} \lVert \theta - \theta_t \rVert^2

    FedProx also counts the partial work of stragglers: that is ``stragglers`` of :class:`~hetfl.local.LocalTraining`.

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
        self, grad_D: Tensor, theta_D: Tensor, anchor_D: Tensor, memory_D: Tensor | None, layout: Layout
    ) -> None:
        grad_D.add_(theta_D - anchor_D, alpha=self.proximal_mu)
