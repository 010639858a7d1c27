"""Ditto: beside the global model, every client trains a model of its own that stays near it.

Li, Hu, Beirami, Smith: Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021 (arXiv 2012.04221).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hetfl.aggregators import Aggregator, SampleMean
from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.levels.budgets import Budgets
from hetfl.local.method import Batch
from hetfl.local.penalty import LARGEST
from hetfl.models import Twin
from hetfl.models.static_batch_norm import static_layers
from hetfl.types import ClientContext, Level, NetFactory

OWN = ("own.*", "trained")
"""Patterns of the tensors that a client keeps."""


class Ditto(FederatedModule):
    r"""Clients train the global model w as in FedAvg, and their own model v with a proximal term (algorithm 1).

    .. math:: w \leftarrow w - \gamma \nabla F_k(w), \qquad
        v_k \leftarrow v_k - \gamma \bigl(\nabla F_k(v_k) + \lambda (v_k - w^t)\bigr)

    with :math:`w^t` the global model that the client began the round with. Both take the same steps on the same
    batches, and only w is sent. ``local/personal_accuracy`` is the score of the clients' own models; a client that has
    taken no part yet uses the global model. ``val/accuracy`` is that of the global model. With several levels, a
    client's own model has the size of its level.

    The net of a level consists of both models (:class:`~hetfl.models.Twin`): a client computes twice as much as in
    FedAvg, and is sent the first half. ``gradient_clip`` shortens both gradients together.

    Args:
        net: builds the net of a level. Static norms are refused: their statistics are those of the global model.
        levels: the levels by name, the largest first, or budgets; None: one level.
        proximal_mu: :math:`\lambda`; 0: each client trains on its own.
        settings: the other arguments of :class:`~hetfl.FederatedModule`, without ``personal``.

    Raises:
        ConfigurationError: ``proximal_mu`` is negative or above 1e6, ``personal`` is set, or the net has static norms.
    """

    default_levels: ClassVar[Mapping[str, Level]] = {"a": Level("a")}
    default_aggregator: ClassVar[type[Aggregator]] = SampleMean

    def __init__(
        self,
        net: NetFactory,
        levels: dict[str, Level] | Budgets | None = None,
        proximal_mu: float = 0.1,
        **settings: Any,
    ) -> None:
        if not 0.0 <= proximal_mu <= LARGEST:
            raise ConfigurationError(f"Expected proximal_mu in [0, {LARGEST:g}] for Ditto but got {proximal_mu}")
        if "personal" in settings:
            raise ConfigurationError(
                f"Expected no personal tensors for Ditto, which has its own, but got {settings['personal']}"
            )
        super().__init__(partial(Twin, net), levels, personal=list(OWN), **settings)
        self.proximal_mu = proximal_mu
        if static := static_layers(self.net):
            raise ConfigurationError(
                "Expected a net without static norms for Ditto, as their statistics are those of the global model, but "
                f"got {next(iter(static)).removeprefix('shared.')!r}: set the net's norm to batch, group or none"
            )

    def before_client(self, net: nn.Module, ctx: ClientContext) -> None:
        """Mark the client's own model as trained."""
        assert isinstance(net.trained, Tensor)
        with torch.no_grad():
            net.trained.fill_(1.0)

    def local_loss(self, net: nn.Module, batch: Batch, ctx: ClientContext) -> Tensor:
        """Return the loss of the global model, plus the loss and the proximal term of the client's own."""
        assert isinstance(net, Twin)
        inputs, targets = batch
        distance = torch.stack(
            [(own - ctx.anchor[f"shared.{name}"]).square().sum() for name, own in net.own.named_parameters()]
        ).sum()
        losses = self.loss(net.shared(inputs), targets, ctx) + self.loss(net.own(inputs), targets, ctx)
        return losses + self.proximal_mu / 2 * distance
