"""Random scores."""

from __future__ import annotations

import torch
from torch import Tensor

from hetfl.pruning.criteria.base import Criterion, Evidence
from hetfl.seeding import generator


class RandomScore(Criterion):
    """The score is uniform in [0, 1), drawn anew whenever entries are scored: the baseline of every criterion."""

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:  # noqa: D102
        random = {name: generator(evidence.seed, "scores", name) for name in evidence.weights}
        drawn = {n: torch.rand(w.shape, generator=random[n], dtype=torch.float32) for n, w in evidence.weights.items()}
        return {name: scores.to(evidence.weights[name]) for name, scores in drawn.items()}
