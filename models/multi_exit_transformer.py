"""The Transformer with an exit per block: DepthFL's axis for token ids."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from hetfl.models.attention import Block
from hetfl.models.exits import Stage, exit_logits
from hetfl.models.tokens import Pooling, TokenInputs, pooled
from hetfl.models.transformer import Transformer


class TokenStage(Stage):
    """A block, and the exit that reads its output: layer norm, mean over the tokens, linear.

    Args:
        trunk: the block.
        features: channels of a token.
        num_classes: outputs K.
        pooling: whether outputs are of a sequence or of every token.
    """

    def __init__(self, trunk: nn.Module, features: int, num_classes: int, pooling: Pooling) -> None:
        super().__init__(trunk, nn.LayerNorm(features), features, num_classes)
        self.pooling: Pooling = pooling

    def forward(self, x: Tensor, reads: Tensor | None = None, mask_NT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the block's output, (N, T, E), and the exit's logits, (N, K) or (N, T, K).

        Args:
            x: channels of the tokens, (N, T, E).
            reads: which tokens each token reads.
            mask_NT: where tokens are no padding; None: everywhere.
        """
        out_NTE = self.trunk(x, reads)
        return out_NTE, self.classifier(pooled(self.exit(out_NTE), mask_NT, self.pooling))


class MultiExitTransformer(Transformer):
    """The trunk of :class:`~hetfl.models.Transformer`, and behind each block an exit: layer norm, mean, linear.

    Its arguments are those of :class:`~hetfl.models.Transformer`; ``depth`` is the number of exits, too.
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
