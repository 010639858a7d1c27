"""HeteroFL's Transformer for masked language modelling: norms follow the sums."""

from __future__ import annotations

from torch import Tensor, nn

from hetfl.models.attention import Attention, Temperature, attended
from hetfl.models.layers import Scaler, make_classifier, scaled
from hetfl.models.tokens import PositionalEmbedding, TokenInputs, tokens_and_mask


class PostNormBlock(nn.Module):
    """Attention, then linear, GELU, linear; each of the two is added to its input, and a layer norm follows the sum.

    A Scaler follows every linear map. Weights of the two linear layers have the initial standard deviation 0.02, biases
    are 0.

    Args:
        channels: channels E of a token at width 1.
        heads: number of heads; never scaled.
        feed_forward: channels between the two linear layers at width 1.
        dropout: dropout probability of the added channels, and between the two linear layers.
        width: width ratio in (0, 1].
        temperature: scale of the attention.

    Raises:
        ConfigurationError: the heads do not divide the channels, or the temperature is unknown.
    """

    def __init__(
        self, channels: int, heads: int, feed_forward: int, dropout: float, width: float, temperature: Temperature
    ) -> None:
        super().__init__()
        narrow, hidden = scaled(channels, width), scaled(feed_forward, width)
        self.attention = Attention(channels, heads, width, bias=True, temperature=temperature)
        self.attention_norm = nn.LayerNorm(narrow)
        linear = nn.Linear(narrow, hidden), nn.Linear(hidden, narrow)
        for layer in linear:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.feed_forward = nn.Sequential(
            linear[0], Scaler(width), nn.GELU(), nn.Dropout(dropout), linear[1], Scaler(width)
        )
        self.feed_forward_norm = nn.LayerNorm(narrow)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_NTE: Tensor, reads: Tensor | None = None) -> Tensor:
        """Return the output of the block for every token, shape (N, T, E).

        Args:
            x_NTE: channels of the tokens.
            reads: which tokens each token attends to; None: all tokens.
        """
        x_NTE = self.attention_norm(x_NTE + self.dropout(self.attention(x_NTE, reads)))
        out_NTE: Tensor = self.feed_forward_norm(x_NTE + self.dropout(self.feed_forward(x_NTE)))
        return out_NTE


class PostNormTransformer(nn.Module):
    r"""The Transformer of HeteroFL's code: embedding, norm, blocks with norms behind the sums, a decoder of two layers.

    .. math:: z = W_2 \, \mathrm{norm}(\mathrm{GELU}(W_1 h + b_1)) + b_2

    is the decoder. A Scaler follows the embedding, every linear map of the blocks and the decoder's first layer;
    the logits are not scaled. The defaults are those of the authors' code. Unlike there, blocks do not begin with
    equal weights. With the temperature ``local`` of that code the widths do not nest exactly, so a run needs
    ``check_nesting: false``. There is no depth: a block with zero weights is not the identity, because its norms
    follow the sums. :class:`~hetfl.models.Transformer` and :class:`~hetfl.models.MultiExitTransformer` have a depth.

    Args:
        vocab_size: number of token ids, the id of masked tokens included.
        num_classes: outputs K; None: ``vocab_size``.
        channels: channels of a token at width 1.
        heads: number of heads; divides ``channels``; never scaled.
        feed_forward: channels between the two linear layers of a block at width 1.
        layers: number of blocks.
        max_length: maximum number of tokens of a sequence.
        causal: whether a token attends only to itself and earlier tokens.
        dropout: dropout probability.
        temperature: the channels D of a head in the scale :math:`1 / \sqrt{D}` of attention: ``local``: those of the
            net itself; ``global``: those of the full width.
        width: width ratio in (0, 1].

    Raises:
        ConfigurationError: a width is out of range, the heads do not divide the channels, or the temperature is
            unknown.
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
        causal: bool = False,
        dropout: float = 0.2,
        temperature: Temperature = "local",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        narrow = scaled(channels, width)
        self.causal = causal
        self.embedding = PositionalEmbedding(vocab_size, max_length, narrow, 0.0, width)
        nn.init.normal_(self.embedding.position)
        self.embedding_norm, self.dropout = nn.LayerNorm(narrow), nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            PostNormBlock(channels, heads, feed_forward, dropout, width, temperature) for _ in range(layers)
        )
        self.decoder = nn.Sequential(make_classifier(narrow, narrow), Scaler(width), nn.GELU(), nn.LayerNorm(narrow))
        self.classifier = make_classifier(narrow, vocab_size if num_classes is None else num_classes)

    def forward(self, inputs: TokenInputs) -> Tensor:
        """Return the logits of every token, shape (N, T, K).

        Args:
            inputs: token ids (N, T), or a mapping of ``tokens`` and ``mask``, each (N, T).
        """
        tokens_NT, mask_NT = tokens_and_mask(inputs, None)
        reads = attended(mask_NT, self.causal, tokens_NT.shape[1], tokens_NT.device)
        features_NTE = self.dropout(self.embedding_norm(self.embedding(tokens_NT)))
        for block in self.blocks:
            features_NTE = block(features_NTE, reads)
        logits: Tensor = self.classifier(self.decoder(features_NTE))
        return logits
