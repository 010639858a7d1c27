"""First masks that clients choose among by their losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hetfl.pruning.densities import Masks, Scope, best, largest, rescaled
from hetfl.question import ClientView, Question
from hetfl.seeding import generator


@dataclass(frozen=True)
class CandidateLoss(Question):
    """The mean loss of a candidate on a client's samples, with the norm statistics of the client's batches.

    Attributes:
        number: of the candidate.
    """

    uses_model: ClassVar[bool] = True
    number: int

    @property
    def size(self) -> int:  # noqa: D102
        return 1

    def answer(self, client: ClientView) -> Tensor:  # noqa: D102
        total, samples = 0.0, 0
        for inputs, targets in client.batches:
            outputs = client.scores(inputs, targets, "the choice of a first mask")
            total, samples = total + float(cross_entropy(outputs, targets, reduction="sum")), samples + len(targets)
        return torch.tensor([total / samples], dtype=torch.float64)


def candidate(scores: Mapping[str, Tensor], scope: Scope, density: float, number: int, seed: int) -> Masks:
    """Return a first mask: the best-scored entries of every weight, with densities of its own.

    Candidate 0 has the densities of the scope; those of the others are these times a factor that is uniform in
    [0.5, 1.5), scaled to the density of all weights together.

    Args:
        scores: of the entries, by weight.
        scope: where entries compete.
        density: of all weights together.
        number: of the candidate.
        seed: of the candidates.
    """
    first = best(scores, scope, density)
    if number == 0:
        return first
    random, sizes = generator(seed, "candidate", number), {name: mask.numel() for name, mask in first.items()}
    factors = (0.5 + torch.rand(len(sizes), generator=random, dtype=torch.float64)).tolist()
    own = {name: float(first[name].double().mean()) * factor for name, factor in zip(sizes, factors, strict=True)}
    scaled = rescaled(own, sizes, density)
    return {name: largest(scores[name], max(1, round(scaled[name] * size))) for name, size in sizes.items()}
