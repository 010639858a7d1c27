"""Tokens per second of a language model: a round of local training compared with a bare PyTorch loop.

Both sides use one thread, and seconds are those of its processor time, which leave out other processes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from bare import BareLoop
from round import local_rounds
from timing import Row, parser, report
from torch import Tensor, nn
from torch.nn import functional as F
from work import Setting

from hetfl.data import TensorData
from hetfl.local import Sequential
from hetfl.models import Transformer
from hetfl.objectives import LanguageModelling


class TextLoop(BareLoop):
    """The bare loop for tokens (n, T) and the tokens that follow them."""

    def loss_of(self, net: nn.Module, client: int, batch: Tensor) -> Tensor:
        """Return the cross-entropy per token; logits of tokens that the client lacks are 0."""
        tokens, targets, absent_V = self.clients[client]
        logits_NTV = net(tokens[batch]).masked_fill(absent_V, 0.0)
        return F.cross_entropy(logits_NTV.flatten(0, 1), targets[batch].flatten())


@dataclass(frozen=True)
class TextSetting(Setting):
    """The work of a round of a causal language model.

    Attributes:
        vocabulary: number of tokens V.
        length: number of tokens T of a sample.
        channels: channels of a token at width 1.
    """

    levels: str = "a"
    clients: int = 8
    cohort: int = 4
    samples: int = 20
    channels: int = 64
    vocabulary: int = 2000
    length: int = 64

    loop: ClassVar[type[BareLoop]] = TextLoop

    @property
    def tokens(self) -> int:
        """Number of tokens that a round trains on."""
        return self.cohort * self.samples * self.length * self.epochs

    def net(self, *, width: float = 1.0) -> nn.Module:
        """Return the net of a width."""
        return Transformer(
            self.vocabulary,
            channels=self.channels,
            heads=4,
            feed_forward=2 * self.channels,
            max_length=self.length,
            pooling="none",
            width=width,
        )

    def data(self) -> TensorData:
        """Return random tokens; every client has half of the vocabulary, so that the loss is masked."""
        random = torch.Generator().manual_seed(1)
        count = self.clients * self.samples
        owner = torch.arange(self.clients).repeat_interleave(self.samples)
        half = torch.randint(self.vocabulary // 2, (count, self.length + 1), generator=random)
        text = (half + owner.view(-1, 1) * 7) % self.vocabulary
        inputs, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
        data = TensorData(
            train_inputs=inputs,
            train_targets=targets,
            test_inputs=inputs[:: self.samples],
            test_targets=targets[:: self.samples],
            num_classes=self.vocabulary,
            train_clients=owner.tolist(),
            test_clients=list(range(self.clients)),
            objective=LanguageModelling(),
            val_fraction=0.0,
        )
        data.setup()
        return data


def text_rounds(setting: TextSetting, blocks: int) -> list[Row]:
    """Check that both sides compute the same deltas, and return the times of both on one thread."""
    return local_rounds(setting, {"Sequential": Sequential}, num_threads=1, blocks=blocks, clock=time.thread_time)


def speeds(setting: TextSetting, rows: Sequence[Row]) -> list[str]:
    """Return a line per side: tokens per second, and the share of the bare loop's, by the medians."""
    lines = []
    for row in rows:
        speed = setting.tokens / statistics.median(row.seconds)
        lines.append(f"{row.side}: {speed:,.0f} tokens per second, {1 / row.ratio_of_medians:.3f} of {rows[0].side}")
    return lines


def main() -> None:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--levels", default="ad", help="levels, each a separate case (default: %(default)s)")
    options.add_argument("--vocabulary", type=int, default=2000, help="number of tokens (default: %(default)s)")
    options.add_argument("--channels", type=int, default=64, help="channels of a token (default: %(default)s)")
    chosen = options.parse_args()
    results = []
    for level in chosen.levels:
        setting = TextSetting(levels=level, vocabulary=chosen.vocabulary, channels=chosen.channels)
        timed = text_rounds(setting, chosen.blocks)
        print(f"level {level}:", *speeds(setting, timed), sep="\n  ")
        results += timed
    report(results, chosen.json)


if __name__ == "__main__":
    main()
