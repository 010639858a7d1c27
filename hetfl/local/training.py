"""The settings of local training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hetfl.errors import ConfigurationError


def default_optimizer(params: Iterable[Tensor]) -> Optimizer:
    """Return HeteroFL's client optimizer for MNIST: SGD(lr=0.01, momentum=0.9, weight_decay=5e-4)."""
    return SGD(params, lr=0.01, momentum=0.9, weight_decay=5e-4)


@dataclass(frozen=True)
class LocalTraining:
    """What a client does with its data in a round.

    Args:
        epochs: passes E over the client's data.
        batch_size: samples B of a step; a last batch of one sample joins the batch before it.
        gradient_clip: largest 2-norm of the whole gradient; None: no clipping.
        optimizer: makes the clients' optimizer; its state starts anew at every client and round.
        scheduler: makes the schedule of the clients' learning rate over *rounds*; None: constant.

    Raises:
        ConfigurationError: a number is not positive.
    """

    epochs: int = 1
    batch_size: int = 10
    gradient_clip: float | None = None
    optimizer: Callable[[Iterable[Tensor]], Optimizer] = default_optimizer
    scheduler: Callable[[Optimizer], LRScheduler] | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value in (("epochs", self.epochs), ("batch_size", self.batch_size)):
            if value < 1:
                raise ConfigurationError(f"Expected local.{name} of at least 1 but got {value}")
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            raise ConfigurationError(f"Expected local.gradient_clip above 0 or null but got {self.gradient_clip}")


def batches(num_samples: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the sample positions of one epoch's batches in a fresh random order.

    A last batch of one sample joins the batch before it: batch norm cannot normalise a single value.
    """
    order = torch.randperm(num_samples, generator=generator)
    if batch_size > 1 and num_samples > batch_size and num_samples % batch_size == 1:
        *head, last = order[:-1].split(batch_size)
        yield from head
        yield torch.cat([last, order[-1:]])
    else:
        yield from order.split(batch_size)


def check_optimizers(
    server: Callable[[Iterable[Tensor]], Optimizer], parameters: Iterable[Tensor], local: LocalTraining
) -> None:
    """Make both optimizers and the schedule once, before a run depends on them.

    Raises:
        ConfigurationError: one of them refuses its settings, or needs what a round cannot give: a closure, a metric.
    """
    try:
        carrier = local.optimizer([nn.Parameter(torch.zeros(1))])
        schedule = None if local.scheduler is None else local.scheduler(carrier)
        optimizers = {"server_optimizer": server(parameters), "local.optimizer": carrier}
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"Expected settings that the optimizers and the scheduler take but got: {error}"
        ) from None
    for name, optimizer in optimizers.items():
        if isinstance(optimizer, LBFGS):
            raise ConfigurationError(
                f"Expected a {name} that steps without a closure but got {type(optimizer).__name__}"
            )
    if isinstance(schedule, ReduceLROnPlateau):
        raise ConfigurationError("Expected a local.scheduler that counts rounds but got ReduceLROnPlateau")
