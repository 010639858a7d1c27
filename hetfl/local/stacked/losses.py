"""Whether a method's loss computes the losses of several clients in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.local.bench import LocalProblem
from hetfl.types import ClientContext, CohortContext, Task

LATER = 1009
"""Rounds from the present one to that in which a loss is tried again: it may change from round to round."""


def loss_is_joint(
    problem: LocalProblem,
    shape: Sequence[int],
    targets_N: Tensor,
    task: Task,
    labels_K: Tensor,
    anchor: Mapping[str, Tensor],
) -> bool:
    """Return whether a method's loss takes outputs of several clients, (S, ..., N, K), and returns one loss each, (S,).

    It is compared with the losses of single clients at their first step, and at a later step of a later round.

    Args:
        problem: has the method.
        shape: shape of the outputs of two clients.
        targets_N: targets of the first client; those of the second are in reverse order.
        task: has the round, the client, the level and the learning rate.
        labels_K: labels of the first client; those of the second are in reverse order.
        anchor: by name, the tensors that the clients began with.

    Raises:
        ConfigurationError: the loss draws from torch's global generator, whose state depends on other clients.
    """
    loss, outputs_SN = problem.method.loss, torch.randn(shape, generator=torch.Generator().manual_seed(0))
    targets_SN = torch.stack([targets_N, targets_N.flip(0)])
    labels_SK = torch.stack([labels_K, labels_K.flip(0)])

    def alone(ctx: ClientContext) -> Tensor:
        each = zip(outputs_SN, targets_SN, labels_SK, strict=True)
        return torch.stack([loss(o, t, replace(ctx, labels=labels)) for o, t, labels in each])

    def together(ctx: ClientContext) -> Tensor:
        return loss(outputs_SN, targets_SN, CohortContext(ctx.round, labels_SK, ctx.level, ctx.lr))

    own = torch.Generator()
    first = ClientContext(task.client, task.round, labels_K, task.level, task.lr, 0, own, anchor)
    state = torch.get_rng_state()
    expected_S = alone(first)
    if not torch.equal(torch.get_rng_state(), state):
        raise ConfigurationError(
            "Expected a loss whose random numbers are those of ctx.generator for executor Stacked but got "
            f"{type(problem.method).__name__}.loss, which draws from torch's: use Sequential or Workers"
        )
    later = replace(first, round=task.round + LATER, step=1)
    try:
        return _equal(together(first), expected_S) and _equal(together(later), alone(later))
    except Exception:  # a loss that is written for one client may raise anything for several
        return False


def _equal(one_S: Tensor, two_S: Tensor) -> bool:
    return one_S.shape == two_S.shape and torch.allclose(one_S, two_S, rtol=1e-4)
