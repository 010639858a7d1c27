"""The settings of local training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hetfl.arguments import checked
from hetfl.errors import ConfigurationError
from hetfl.local.penalty import NoPenalty, Penalty
from hetfl.piece import described, settings_of


def default_optimizer(params: Iterable[Tensor]) -> Optimizer:
    """Return HeteroFL's client optimizer for MNIST: SGD(lr=0.01, momentum=0.9, weight_decay=5e-4)."""
    return SGD(params, lr=0.01, momentum=0.9, weight_decay=5e-4)


@checked
@dataclass(frozen=True)
class LocalTraining:
    """The settings of a client's local training in a round.

    Args:
        epochs: passes E over the client's data.
        batch_size: samples B of a step; a last batch of one sample joins the batch before it.
        gradient_clip: largest 2-norm of the whole gradient; None: no clipping.
        optimizer: makes the clients' optimizer; its state starts anew at every client and round.
        scheduler: makes the schedule of the clients' learning rate over *rounds*; None: constant.
        penalty: a term of the objective beside the loss: :class:`~hetfl.local.Proximal`, :class:`~hetfl.local.FedDyn`.
        stragglers: share of a cohort that only completes 1 to E − 1 epochs, drawn anew every round; their updates
            count (FedProx, section 5.2).

    Raises:
        ConfigurationError: a number is not positive, ``stragglers`` is not in [0, 1], or there are stragglers with
            E = 1.
    """

    epochs: int = 1
    batch_size: int = 10
    gradient_clip: float | None = None
    optimizer: Callable[[Iterable[Tensor]], Optimizer] = default_optimizer
    scheduler: Callable[[Optimizer], LRScheduler] | None = None
    penalty: Penalty | None = None
    stragglers: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value in (("epochs", self.epochs), ("batch_size", self.batch_size)):
            if value < 1:
                raise ConfigurationError(f"Expected local.{name} of at least 1 but got {value}")
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            raise ConfigurationError(f"Expected local.gradient_clip above 0 or null but got {self.gradient_clip}")
        if not 0.0 <= self.stragglers <= 1.0:
            raise ConfigurationError(f"Expected local.stragglers in [0, 1] but got {self.stragglers}")
        if self.stragglers and self.epochs < 2:
            raise ConfigurationError("Expected local.epochs of at least 2 with stragglers, which do fewer, but got 1")

    @cached_property
    def regulariser(self) -> Penalty:
        """The penalty; :class:`NoPenalty` if there is none."""
        return self.penalty or NoPenalty()

    def learning_rates(self, rounds: int) -> list[float]:
        """Return the clients' learning rate γ_t of every round, by playing the schedule through."""
        carrier = self.optimizer([nn.Parameter(torch.zeros(1))])
        schedule = None if self.scheduler is None else self.scheduler(carrier)
        rates = []
        for _ in range(rounds):
            rates.append(float(carrier.param_groups[0]["lr"]))
            carrier.step()  # it moves nothing, and tells the schedule that a round's step has been
            if schedule is not None:
                schedule.step()
        return rates

    def describe(self) -> str:
        """Return the settings as short text, without the optimizer, the schedule and the penalty."""
        return described(type(self).__name__, settings_of(self, less={"optimizer", "scheduler", "penalty"}))

    def epochs_of(self, cohort: int, generator: torch.Generator) -> list[int]:
        """Return the epochs of each client of a cohort: E, or fewer for stragglers.

        Args:
            cohort: number of clients.
            generator: of the round.
        """
        epochs = [self.epochs] * cohort
        count = round(self.stragglers * cohort)
        for client in torch.randperm(cohort, generator=generator)[:count].tolist():
            epochs[client] = int(torch.randint(1, self.epochs, (), generator=generator))
        return epochs


def batches(num_samples: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the sample positions of one epoch's batches in a fresh random order; see :func:`cut`."""
    return cut(torch.randperm(num_samples, generator=generator), batch_size)


def cut(order: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yield consecutive parts of an order of samples.

    A last batch of one sample joins the batch before it: batch norm cannot normalise a single value.

    Args:
        order: sample positions, shape (N,).
        batch_size: positions in a part.
    """
    if len(order) > batch_size and len(order) % batch_size == 1:
        *head, last = order[:-1].split(batch_size)
        yield from head
        yield torch.cat([last, order[-1:]])
    else:
        yield from order.split(batch_size)


def check_optimizers(
    server: Callable[[Iterable[Tensor]], Optimizer], parameters: Iterable[Tensor], local: LocalTraining
) -> None:
    """Make both optimizers and the schedule once, to find errors before a run starts.

    Raises:
        ConfigurationError: one of them refuses its settings, or needs a closure or a metric, which a round has not.
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
