"""Gradients that a server asks its clients for: which entries travel, and their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hetfl.codes import Codes
from hetfl.part import Part
from hetfl.pruning.criteria import Criterion, Evidence, Magnitude
from hetfl.pruning.densities import Scope, best, largest
from hetfl.seeding import derive
from hetfl.submodel import add, take
from hetfl.types import Task
from hetfl.updates import DenseUpdate, SparseUpdate, Update


@dataclass(frozen=True)
class GradientRequest:
    """Which entries of its gradient a client sends.

    Attributes:
        counts: by tensor, how many of the largest gradients among the entries that the client does not hold; None: the
            gradient of every entry of the client's index.
        samples: of the client's data, drawn at random; None: all of it.
        values: whether the values of chosen gradients travel; if not, only their positions do, and the server reads 1.
        whole: whether the client downloads all entries of its level's index first, and not only those of its part.
    """

    counts: Mapping[str, int] | None = None
    samples: int | None = None
    values: bool = True
    whole: bool = False

    def chosen(self, gradient_D: Tensor, part: Part, task: Task) -> Update:
        """Return what a client sends.

        Args:
            gradient_D: of the trained parameters of the part's index, held or not, shape (D,).
            part: the trained parameters that the client has downloaded.
            task: the client's task.
        """
        if self.counts is None:
            return DenseUpdate(gradient_D)
        absent_D = torch.zeros(len(gradient_D), dtype=torch.bool) if part.mask_D is None else ~part.mask_D
        sizes, chosen = part.layout.sizes, []
        for name, gradient, absent in zip(part, gradient_D.split(sizes), absent_D.split(sizes), strict=True):
            scores = gradient.abs().cpu().masked_fill(~absent, 0.0)
            chosen.append(largest(scores, min(self.counts.get(name, 0), int((scores > 0).count_nonzero()))))
        indices = torch.cat(chosen).nonzero().squeeze(1)
        update = SparseUpdate(gradient_D.cpu()[indices], indices, len(gradient_D))
        return update if self.values else positions_alone(update)


@dataclass(frozen=True)
class MaskRequest(GradientRequest):
    """A client scores the entries of its level by its own gradient, and sends the positions of those it will hold.

    Attributes:
        criterion: scores entries.
        scope: where entries compete.
        densities: of the levels, by name.
        weights: the present weights of every global model, by name.
        seconds: seconds that one entry of a weight costs a client in a round.
        seed: of random scores; each client and round has its own.
        whole: always true: the client downloads all entries of its level's index.
    """

    criterion: Criterion = field(default_factory=Magnitude)
    scope: Scope = "layer"
    densities: Mapping[str, float] = field(default_factory=dict)
    weights: Sequence[Mapping[str, Tensor]] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    whole: bool = True

    def chosen(self, gradient_D: Tensor, part: Part, task: Task) -> Update:  # noqa: D102
        present, seed = self.weights[task.model], derive(self.seed, "scores", task.round, task.client)
        gradients = {name: each for name, each in part.layout.views(gradient_D).items() if name in present}
        weights = {name: take(present[name], part[name]) for name in gradients}
        squares = {name: gradient.square() for name, gradient in gradients.items()}
        known = Evidence(weights, gradients=gradients, squares=squares, seconds=self.seconds, seed=seed)
        scores = self.criterion.scores(known)
        masks = best(scores, self.scope, self.densities[task.level])
        whole = {
            name: masks.get(name, torch.zeros(shape, dtype=torch.bool)) for name, shape in part.layout.shapes.items()
        }
        indices = torch.cat([mask.flatten() for mask in whole.values()]).nonzero().squeeze(1)
        return positions_alone(SparseUpdate(torch.ones(len(indices)), indices, len(gradient_D)))


def positions_alone(update: SparseUpdate) -> Update:
    """Return an update of the same entries, all 1, whose values take one bit each."""
    count = update.indices.numel()
    if not count:
        return update
    one = torch.ones(1)
    codes = Codes(torch.zeros(count, dtype=torch.int32), 1, one, -one, torch.tensor([count]), count)
    return update.with_codes(codes, update.values.dtype)


@dataclass(frozen=True)
class ClientGradient:
    """A client's gradient as the server read it.

    Attributes:
        client: the client's id.
        samples: number of samples that it is the mean of.
        part: the trained parameters of the client's index, without a mask.
        update: the entries that were sent.
    """

    client: int
    samples: int
    part: Part
    update: Update

    def tensors(self) -> dict[str, Tensor]:
        """Return by name the gradient in the shapes of the client's tensors; 0 where nothing was sent."""
        return dict(self.part.layout.views(self.update.to_dense()))

    def sent(self) -> dict[str, Tensor]:
        """Return by name which entries were sent: bool, in the shapes of the client's tensors."""
        marks = torch.ones(self.update.size, dtype=torch.bool)
        if isinstance(self.update, SparseUpdate):
            marks = torch.zeros(self.update.size, dtype=torch.bool)
            marks[self.update.indices.cpu()] = True
        return dict(self.part.layout.views(marks))


class MeanGradients:
    """The mean of clients' gradients, and of their squares, weighted by samples.

    The mean of an entry is over the clients whose index has it; if such a client does not send it, it counts as 0. The
    mean of an entry that no client has is 0.

    Args:
        like: tensors of the global model whose gradients are needed.
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self.samples = 0
        self._sums = {name: torch.zeros_like(tensor) for name, tensor in like.items()}
        self._squares = {name: torch.zeros_like(tensor) for name, tensor in like.items()}
        self._counts = {name: torch.zeros_like(tensor) for name, tensor in like.items()}  # samples of each entry

    def add(self, answer: ClientGradient) -> None:
        """Add a client's gradient."""
        self.samples += answer.samples
        for name, gradient in answer.tensors().items():
            if name in self._sums:
                gradient = gradient.to(self._sums[name])
                add(self._sums[name], answer.part[name], gradient, answer.samples)
                add(self._squares[name], answer.part[name], gradient.square(), answer.samples)
                add(self._counts[name], answer.part[name], answer.samples)

    @property
    def means(self) -> dict[str, Tensor]:
        """The mean gradient of each entry."""
        return {name: total / self._counts[name].clamp(min=1) for name, total in self._sums.items()}

    @property
    def squares(self) -> dict[str, Tensor]:
        """The mean squared gradient of each entry."""
        return {name: total / self._counts[name].clamp(min=1) for name, total in self._squares.items()}
