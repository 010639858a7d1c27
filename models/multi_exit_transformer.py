"""The Transformer with an exit per block: DepthFL's axis for token ids."""

from __future__ import annotations

from torch import Tensor, nn

from hetfl.models.attention import Block, attended
from hetfl.models.exits import Stage, exit_logits
from hetfl.models.layers import kept_stages, scaled
from hetfl.models.tokens import Pooling, PositionalEmbedding, TokenInputs, check_pooling, pooled, tokens_and_mask


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


class MultiExitTransformer(nn.Module):
    """The trunk of :class:`~hetfl.models.Transformer`, and behind each block an exit: layer norm, mean, linear.

    Args:
        vocab_size: number of token ids V, one for padding and one for masked tokens included if there are such.
        num_classes: outputs K; None: the vocabulary, for a language model.
        channels: channels of a token at width 1.
        heads: number of heads; divides ``channels``.
        feed_forward: channels between a block's two linear layers at width 1.
        layers: number of blocks of the full net.
        max_length: largest number of tokens of a sequence.
        pooling: ``mean`` over the tokens of a sequence, for classes of sequences; ``none`` for outputs of every token.
        causal: whether a token reads only itself and those before it; None: if there is no pooling.
        padding: the id of padding in inputs without a mask; None: there is none.
        dropout: share of the channels that training leaves out.
        depth: number of blocks; None: all of them.
        width: width ratio in (0, 1].

    Raises:
        ConfigurationError: a depth or width out of range, an unknown pooling, heads that do not divide the channels.
    """

    def __init__(
        self,
        vocab_size: int,
        num_classes: int | None = None,
        channels: int = 256,
        heads: int = 8,
        feed_forward: int = 512,
        layers: int = 4,
        max_length: int = 64,
        pooling: Pooling = "mean",
        causal: bool | None = None,
        padding: int | None = None,
        dropout: float = 0.0,
        depth: int | None = None,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        check_pooling(pooling)
        self.padding, self.exits = padding, kept_stages(depth, layers)
        self.causal = pooling == "none" if causal is None else causal
        narrow, outputs = scaled(channels, width), vocab_size if num_classes is None else num_classes
        self.embedding = PositionalEmbedding(vocab_size, max_length, narrow, dropout, width)
        self.stages = nn.ModuleList(
            TokenStage(Block(channels, heads, feed_forward, dropout, width), narrow, outputs, pooling)
            for _ in range(self.exits)
        )

    def forward(self, inputs: TokenInputs) -> Tensor:
        """Return the logits of all exits, the shallowest first: (H, N, K), or (H, N, T, K) without pooling.

        Args:
            inputs: token ids (N, T), or a mapping of ``tokens`` and ``mask``, each (N, T).
        """
        tokens_NT, mask_NT = tokens_and_mask(inputs, self.padding)
        reads = attended(mask_NT, self.causal, tokens_NT.shape[1], tokens_NT.device)
        return exit_logits(self.stages, self.embedding(tokens_NT), reads, mask_NT)
