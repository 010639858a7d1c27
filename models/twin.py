"""Two nets of one architecture: a shared one, and one that a client keeps for itself."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from hetfl.types import NetFactory


class Twin(nn.Module):
    """A shared net, and a client's own net, which begins as a copy of it.

    In evaluation the output is that of the client's own net if the client has trained it, and otherwise that of the
    shared net. It is the client's if ``trained`` is 1; in the global model it is 0. In training mode the output is that
    of the shared net: clients that are asked for a loss before they train answer for the model that they were sent.

    Args:
        net: builds each of both nets; it takes ``width``, and ``depth`` if levels have one.
        width: width ratio in (0, 1].
        depth: number of stages; None: the default of the net.
    """

    trained: Tensor

    def __init__(self, net: NetFactory, width: float = 1.0, depth: int | None = None) -> None:
        super().__init__()
        self.shared = net(width=width) if depth is None else net(width=width, depth=depth)  # type: ignore[call-arg]
        self.own = copy.deepcopy(self.shared)
        self.register_buffer("trained", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of the client's own net in evaluation, if it is trained, otherwise of the shared net."""
        if self.training:
            outputs: Tensor = self.shared(x)
            return outputs
        return torch.where(self.trained > 0, self.own(x), self.shared(x))
