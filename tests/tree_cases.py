"""Nets whose inputs are token ids, a tuple or a dict, and learnable data for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hetfl.data import Arrays, ClientData, FederatedDataModule
from hetfl.models.layers import Scaler
from hetfl.models.static_batch_norm import StaticBatchNorm2d

TOKENS, LENGTH, CLASSES = 12, 6, 3


def wide(channels: int, width: float) -> int:
    return max(int(channels * width), 1)


class TextNet(nn.Module):
    """Maps token ids (N, T), int64, to logits: embedding, mean, norm, classifier."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels = wide(8, width)
        self.embedding, self.head = nn.Embedding(TOKENS, channels), nn.Linear(channels, CLASSES)
        self.norm, self.scaler = StaticBatchNorm2d(channels), Scaler(width)

    def forward(self, tokens_NT: Tensor) -> Tensor:
        return self.logits(self.embedding(tokens_NT).mean(1))

    def logits(self, x_NC: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.scaler(x_NC)[:, :, None, None]).flatten(1).relu())
        return logits


class MaskedNet(TextNet):
    """Reads a dict of tokens and a bool mask (N, T); the mean is over masked-in tokens."""

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        mask_NT1 = inputs["mask"].unsqueeze(-1)
        x_NTC = self.embedding(inputs["tokens"]) * mask_NT1
        return self.logits(x_NTC.sum(1) / mask_NT1.sum(1).clamp(min=1))


class TwoInputNet(TextNet):
    """Reads a tuple of token ids and a list of one float table (N, 2)."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__(width)
        self.table = nn.Linear(2, wide(8, width))

    def forward(self, inputs: tuple[Tensor, list[Tensor]]) -> Tensor:  # type: ignore[override]
        tokens_NT, (table_NF,) = inputs
        return self.logits(self.embedding(tokens_NT).mean(1) + self.table(table_NF))


def raw(form: str, count: int, seed: int) -> tuple[Any, Tensor]:
    """Return inputs of a form, and classes: the third of the vocabulary that has most of the tokens."""
    random = torch.Generator().manual_seed(seed)
    targets_N = torch.arange(count) % CLASSES
    noise_NT = torch.randint(TOKENS, (count, LENGTH), generator=random)
    own_NT = targets_N[:, None] * 4 + torch.randint(4, (count, LENGTH), generator=random)
    tokens_NT = torch.where(torch.rand(count, LENGTH, generator=random) < 0.8, own_NT, noise_NT)
    mask_NT = torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (count, 1), generator=random)
    table_NF = torch.rand(count, 2, generator=random)
    forms = {"tokens": tokens_NT, "dict": {"tokens": tokens_NT, "mask": mask_NT}, "tuple": (tokens_NT, [table_NF])}
    return forms[form], targets_N


FORMS: dict[str, Callable[..., nn.Module]] = {"tokens": TextNet, "dict": MaskedNet, "tuple": TwoInputNet}


class Given(FederatedDataModule):
    """Inputs of a form, for six clients."""

    def __init__(self, form: str, names: tuple[str, ...] | None = None, **settings: Any) -> None:
        super().__init__(num_clients=None, **settings)
        self.form, self.names = form, names

    def load(self) -> Arrays:
        train, test = ClientData(*raw(self.form, 150, 0)), ClientData(*raw(self.form, 60, 1))
        return Arrays(train, test, CLASSES, train_clients=torch.arange(150) // 3 % 6, client_names=self.names)
