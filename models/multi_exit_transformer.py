"""The Transformer with an exit per block, as in DepthFL, for token ids."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from hetfl.models.attention import Block
from hetfl.models.exits import Stage, exit_logits
from hetfl.models.tokens import Pooling, TokenInputs, pooled
from hetfl.models.transformer import Transformer


class TokenStage(Stage):
    """A block, and the exit on its output: layer norm, mean over the tokens, linear.

    Args:
        trunk: the block.
        features: channels of a token.
        num_classes: outputs K.
        pooling: ``mean`` for one output per sequence, ``none`` for one output per token.
    """

    def __init__(self, trunk: nn.Module, features: int, num_classes: int, pooling: Pooling) -> None:
        super().__init__(trunk, nn.LayerNorm(features), features, num_classes)
        self.pooling: Pooling = pooling

    def forward(self, x: Tensor, reads: Tensor | None = None, mask_NT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the output of the block, (N, T, E), and the logits of the exit, (N, K) or (N, T, K).

        Args:
            x: channels of the tokens, (N, T, E).
            reads: which tokens each token attends to; None: all tokens.
            mask_NT: False at padding; None: no padding.
        """
        out_NTE = self.trunk(x, reads)
        return out_NTE, self.classifier(pooled(self.exit(out_NTE), mask_NT, self.pooling))


class MultiExitTransformer(Transformer):
    """The trunk of :class:`~hetfl.models.Transformer`, with an exit after each block: layer norm, mean, linear.

    The arguments are those of :class:`~hetfl.models.Transformer`; ``depth`` is also the number of exits.
    """

    def add_blocks(self, blocks: Iterable[Block], features: int, outputs: int) -> None:
        """Register a stage per block: the block and its exit."""
        self.stages = nn.ModuleList(TokenStage(block, features, outputs, self.pooling) for block in blocks)
        self.exits = len(self.stages)

    def forward(self, inputs: TokenInputs) -> Tensor:
        """Return the logits of all exits, the shallowest first: (H, N, K), or (H, N, T, K) without pooling.

        Args:
            inputs: token ids (N, T), or a mapping of ``tokens`` and ``mask``, each (N, T).
        """
        return exit_logits(self.stages, *self.embedded(inputs))
