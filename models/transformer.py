"""A Transformer for token ids, scaled in width as in HeteroFL, and in depth."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from hetfl.models.attention import Block, attended
from hetfl.models.layers import kept_stages, make_classifier, scaled
from hetfl.models.tokens import Pooling, PositionalEmbedding, TokenInputs, check_pooling, pooled, tokens_and_mask


class Transformer(nn.Module):
    """Embedding of tokens and positions, blocks of attention and two linear layers, layer norm, mean, linear.

    The sizes are those of HeteroFL's Transformer (Diao, Ding, Tarokh: HeteroFL, ICLR 2021, appendix), which is
    :class:`~hetfl.models.PostNormTransformer`. Here norms precede the attention instead of following the sum, and the
    classifier is a single layer. Channels of a token, of a head and between the linear layers are scaled; vocabulary,
    positions, heads and classes are not. A net with fewer blocks has the first blocks of a deeper net, followed by the
    same norm and classifier. Inputs are token ids, so there is no ``in_channels``.

    Args:
        vocab_size: number of token ids V, including ids for padding and for masked tokens if there are any.
        num_classes: outputs K; None: V, for a language model.
        channels: channels of a token at width 1.
        heads: number of heads; divides ``channels``.
        feed_forward: channels between the two linear layers of a block at width 1.
        layers: number of blocks of the full net.
        max_length: maximum number of tokens of a sequence.
        pooling: ``mean`` over the tokens, for one output per sequence; ``none`` for one output per token.
        causal: whether a token attends only to itself and earlier tokens; None: true exactly if ``pooling`` is
            ``none``. Prediction of the next token needs true, prediction of masked tokens needs false.
        padding: the id of padding in inputs without a mask; None: no padding.
        dropout: dropout probability.
        depth: number of blocks; None: all of them.
        width: width ratio in (0, 1].

    Raises:
        ConfigurationError: a depth or width is out of range, the pooling is unknown, or the heads do not divide the
            channels.
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
        self.pooling, self.padding = pooling, padding
        self.causal = pooling == "none" if causal is None else causal
        narrow, outputs = scaled(channels, width), vocab_size if num_classes is None else num_classes
        self.embedding = PositionalEmbedding(vocab_size, max_length, narrow, dropout, width)
        blocks = (Block(channels, heads, feed_forward, dropout, width) for _ in range(kept_stages(depth, layers)))
        self.add_blocks(blocks, narrow, outputs)

    def add_blocks(self, blocks: Iterable[Block], features: int, outputs: int) -> None:
        """Register the blocks, the final norm and the classifier.

        Args:
            blocks: the blocks in order.
            features: channels of a token.
            outputs: number of outputs K.
        """
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(features)
        self.classifier = make_classifier(features, outputs)

    def embedded(self, inputs: TokenInputs) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the channels of the tokens (N, T, E), which tokens each attends to, and the mask."""
        tokens_NT, mask_NT = tokens_and_mask(inputs, self.padding)
        reads = attended(mask_NT, self.causal, tokens_NT.shape[1], tokens_NT.device)
        return self.embedding(tokens_NT), reads, mask_NT

    def forward(self, inputs: TokenInputs) -> Tensor:
        """Return the logits, shape (N, K), or (N, T, K) without pooling.

        Args:
            inputs: token ids (N, T), or a mapping of ``tokens`` and ``mask``, each (N, T).
        """
        features_NTE, reads, mask_NT = self.embedded(inputs)
        for block in self.blocks:
            features_NTE = block(features_NTE, reads)
        logits: Tensor = self.classifier(pooled(self.norm(features_NTE), mask_NT, self.pooling))
        return logits
