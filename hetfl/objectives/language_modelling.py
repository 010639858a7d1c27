"""Language modelling: tokens as targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    Targets are whole numbers from 0, shape (N, T); outputs are logits, shape (N, T, V). To predict the next token, the
    targets of the data are the inputs shifted by one. For masked language modelling the targets are the inputs, and
    each batch masks a random part of the input tokens. Its score has the name ``masked_perplexity``: the net sees the
    tokens on both sides, so it is no perplexity of the text. A client owns the tokens that occur in its targets.

    Args:
        ignore: the target of positions that are not counted, such as padding.
        masked: fraction of the tokens that are masked; None: no masking.
        mask_token: the token that replaces a masked token; the embedding of the net needs a row for it.
        only_masked: whether only masked tokens are counted, as in BERT; HeteroFL counts all tokens.

    Raises:
        ConfigurationError: ``masked`` is outside (0, 1), only one of ``masked`` and ``mask_token`` is set, or
            ``ignore`` is not negative.
    """

    owns_labels: ClassVar[bool] = True
    probabilities: ClassVar[bool] = True

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
        name = "perplexity" if masked is None else "masked_perplexity"
        self.headline = Headline(name, higher_is_better=False, percent=False)

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
        """Return a batch with random tokens masked; unchanged if ``masked`` is None.

        Inputs are the tokens (N, T), or a dict that has them under ``tokens``.
        """
        if self.masked is None:
            return inputs, targets
        drawn = torch.rand(targets.shape, generator=generator, dtype=torch.float32) < self.masked
        return self._hidden(inputs, targets, drawn.to(targets.device))

    def trial(self, inputs: Any, targets: Tensor) -> tuple[Any, Tensor]:
        """Return a batch with all tokens masked; unchanged if ``masked`` is None.

        Raises:
            ConfigurationError: the inputs do not have tokens of the shape of the targets.
        """
        if self.masked is None:
            return inputs, targets
        tokens = inputs.get("tokens") if isinstance(inputs, dict) else inputs
        if not isinstance(tokens, Tensor) or tokens.shape != targets.shape:
            raise ConfigurationError(
                f"Expected tokens of shape {tuple(targets.shape)} to mask, alone or under the name tokens, but got "
                f"{in_words(inputs)}"
            )
        return self._hidden(inputs, targets, torch.ones_like(targets, dtype=torch.bool))

    def check_predictions(self, predicted: Callable[[Any], Tensor], inputs: Any, targets: Tensor) -> None:
        """Refuse a net that sees the following token where it must predict it.

        Raises:
            ConfigurationError: the targets are the following tokens, and outputs depend on later tokens.
        """
        tokens = inputs.get("tokens") if isinstance(inputs, dict) else inputs
        if self.masked is not None or not isinstance(tokens, Tensor) or tokens.shape != targets.shape:
            return
        following, wanted = tokens[:, 1:], targets[:, :-1]
        if not following.numel() or not bool(((wanted == following) | (wanted == self.ignore)).all()):
            return
        changed = tokens.clone()
        changed[:, -1] = (tokens[:, -1] == 0).to(tokens.dtype)  # another token of any vocabulary
        others = {**inputs, "tokens": changed} if isinstance(inputs, dict) else changed
        before, after = predicted(inputs)[:, :-1], predicted(others)[:, :-1]
        if not torch.allclose(before, after, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise ConfigurationError(
                "Expected a causal net for targets that are the following tokens but got outputs that depend on later "
                "tokens: set the net's causal to true"
            )

    def _hidden(self, inputs: Any, targets: Tensor, drawn_NT: Tensor) -> tuple[Any, Tensor]:
        """Return a batch with the tokens at the given positions masked."""
        tokens = inputs["tokens"] if isinstance(inputs, dict) else inputs
        drawn_NT = drawn_NT & (targets != self.ignore)
        hidden = tokens.masked_fill(drawn_NT, self.mask_token)
        if self.only_masked:
            targets = targets.masked_fill(~drawn_NT, self.ignore)
        return {**inputs, "tokens": hidden} if isinstance(inputs, dict) else hidden, targets

    def output_shape(self, targets: Tensor, size: int) -> tuple[int, ...]:  # noqa: D102
        return (*targets.shape, size)

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every position in the shape of the targets; 0 at ignored positions."""
        flat = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=self.ignore)
        return flat.view(targets.shape)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        counts = (targets != self.ignore).sum((-2, -1))
        return self._losses(outputs, targets).sum((-2, -1)) / counts.clamp(min=1)

    def weight(self, targets: Tensor) -> float:  # noqa: D102
        return int((targets != self.ignore).sum())

    def metrics(self, size: int) -> Mapping[str, Metric]:  # noqa: D102
        return {self.headline.name: HeadlineOfSums(self)}

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        losses = self._losses(outputs.double(), targets).sum(-1)
        return torch.stack([losses, (targets != self.ignore).sum(-1).double()], dim=-1)

    def score(self, sums: Tensor) -> Tensor:  # noqa: D102
        return torch.exp(sums[..., 0] / sums[..., 1])
