"""Tokens as targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from hetfl.errors import ConfigurationError
from hetfl.objectives.base import HeadlineOfSums, Objective, expected_targets
from hetfl.runs.headline import Headline
from hetfl.tree import in_words


class LanguageModelling(Objective):
    r"""Each position of a sequence has one of V tokens; the loss is the cross-entropy per token.

    .. math:: L = \frac{1}{M} \sum_{n, t:\, y_{nt} \ne \text{ignored}} \mathrm{CE}(z_{nt}, y_{nt}), \qquad
        \text{perplexity} = e^L

    Targets are whole numbers from 0, shape (N, T); outputs are logits, shape (N, T, V). For the next token the data's
    targets are its inputs, moved by one. For masked language modelling the targets are the inputs themselves: some
    tokens of the inputs are masked, drawn anew in every batch. A client owns the tokens that its targets have.

    Args:
        ignore: the target of positions that do not count, such as padding.
        masked: share of tokens that are masked; None: no token is.
        mask_token: stands in the place of a masked token; a net's embedding needs a row for it.
        only_masked: whether masked tokens alone count, as in BERT; HeteroFL counts all tokens.

    Raises:
        ConfigurationError: the share is outside (0, 1), or there is no token for it; or ``ignore`` is a token.
    """

    owns_labels: ClassVar[bool] = True
    probabilities: ClassVar[bool] = True
    headline = Headline("perplexity", higher_is_better=False, percent=False)

    def __init__(
        self, ignore: int = -100, masked: float | None = None, mask_token: int | None = None, only_masked: bool = True
    ) -> None:
        if masked is not None and not 0 < masked < 1:
            raise ConfigurationError(f"Expected masked in (0, 1) or null but got {masked}")
        if (masked is None) != (mask_token is None):
            raise ConfigurationError(f"Expected masked and mask_token together but got {masked} and {mask_token}")
        if ignore >= 0:
            raise ConfigurationError(f"Expected ignore below 0, so that it is no token, but got {ignore}")
        self.ignore, self.masked, self.mask_token, self.only_masked = ignore, masked, mask_token, only_masked

    def noun(self, size: int) -> str:  # noqa: D102
        return f"{size} tokens"

    def prepared(self, targets: Tensor, where: str) -> Tensor:  # noqa: D102
        whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
        if targets.dim() != 2 or not whole:
            raise expected_targets("whole numbers of shape (n, length)", targets, where, type(self).__name__)
        return targets.long()

    def size(self, targets: Tensor) -> int:  # noqa: D102
        return 1 + int(targets.max())

    def check_size(self, targets: Tensor, size: int, where: str) -> None:  # noqa: D102
        counted = targets[targets != self.ignore]
        if not len(counted) or int(counted.min()) < 0 or int(counted.max()) >= size:
            got = f"{int(counted.min())} to {int(counted.max())}" if len(counted) else "none that counts"
            raise ConfigurationError(f"Expected {where} targets in [0, {size}) or {self.ignore} but got {got}")

    def label_counts(self, targets: Tensor, size: int) -> Tensor:  # noqa: D102
        return targets[targets != self.ignore].bincount(minlength=size)

    def batch(self, inputs: Any, targets: Tensor, generator: torch.Generator) -> tuple[Any, Tensor]:
        """Return a batch with some of its tokens masked, if tokens are.

        Inputs are the tokens (N, T), or have them under ``tokens``.
        """
        if self.masked is None:
            return inputs, targets
        drawn = torch.rand(targets.shape, generator=generator, dtype=torch.float32) < self.masked
        return self._hidden(inputs, targets, drawn.to(targets.device))

    def trial(self, inputs: Any, targets: Tensor) -> tuple[Any, Tensor]:
        """Return a batch with all of its tokens masked, if tokens are.

        Raises:
            ConfigurationError: the inputs are no tokens of the shape of the targets.
        """
        if self.masked is None:
            return inputs, targets
        tokens = inputs.get("tokens") if isinstance(inputs, dict) else inputs
        if not isinstance(tokens, Tensor) or tokens.shape != targets.shape:
            raise ConfigurationError(
                f"Expected tokens of shape {tuple(targets.shape)} to mask, alone or by that name, but got "
                f"{in_words(inputs)}"
            )
        return self._hidden(inputs, targets, torch.ones_like(targets, dtype=torch.bool))

    def _hidden(self, inputs: Any, targets: Tensor, drawn_NT: Tensor) -> tuple[Any, Tensor]:
        """Return a batch without the tokens at some places."""
        tokens = inputs["tokens"] if isinstance(inputs, dict) else inputs
        drawn_NT = drawn_NT & (targets != self.ignore)
        hidden = tokens.masked_fill(drawn_NT, self.mask_token)
        if self.only_masked:
            targets = targets.masked_fill(~drawn_NT, self.ignore)
        return {**inputs, "tokens": hidden} if isinstance(inputs, dict) else hidden, targets

    def output_shape(self, targets: Tensor, size: int) -> tuple[int, ...]:  # noqa: D102
        return (*targets.shape, size)

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every position, 0 where it does not count, in the shape of the targets."""
        flat = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=self.ignore)
        return flat.view(targets.shape)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        counts = (targets != self.ignore).sum((-2, -1))
        return self._losses(outputs, targets).sum((-2, -1)) / counts.clamp(min=1)

    def weight(self, targets: Tensor) -> float:  # noqa: D102
        return int((targets != self.ignore).sum())

    def metrics(self, size: int) -> Mapping[str, Metric]:  # noqa: D102
        return {"perplexity": HeadlineOfSums(self)}

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        losses = self._losses(outputs.double(), targets).sum(-1)
        return torch.stack([losses, (targets != self.ignore).sum(-1).double()], dim=-1)

    def score(self, sums: Tensor) -> Tensor:  # noqa: D102
        return torch.exp(sums[..., 0] / sums[..., 1])
