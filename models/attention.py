"""Attention and the block of the Transformer, with tensor shapes whose leading blocks are narrower heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl.errors import ConfigurationError
from hetfl.models.layers import Scaler, scaled

Temperature = Literal["global", "local"]
"""The channels D of a head in the scale of attention: those of the full width, or those of the net itself."""


def attended(mask_NT: Tensor | None, causal: bool, length: int, device: torch.device) -> Tensor | None:
    """Return which tokens (last dimension) each token attends to: bool, (N, 1, T, T) or (T, T); None: all tokens.

    Tokens do not attend to padding or, if ``causal``, to later tokens. Every token attends to itself, so that no row is
    empty.

    Args:
        mask_NT: False at padding; None: no padding.
        causal: whether a token attends only to itself and earlier tokens.
        length: number of tokens T.
        device: device of the result.
    """
    if mask_NT is None and not causal:
        return None
    reads = torch.ones(length, length, dtype=torch.bool, device=device)
    if causal:
        reads = reads.tril()
    if mask_NT is None:
        return reads
    itself_TT = torch.eye(length, dtype=torch.bool, device=device)
    return (reads & mask_NT[:, None, None, :]) | itself_TT


class Projection(nn.Module):
    """A linear map of channels by a weight of more than two dimensions; it has no parameters of its own.

    Args:
        order: the order of the weight's dimensions in which its outputs come first, in the order of the channels.
        outputs: number of dimensions that are outputs; they are the first ones of the weight, in any order.
    """

    def __init__(self, order: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.order, self.outputs = tuple(order), outputs

    def rows(self, weight: Tensor) -> Tensor:
        """Return a tensor of shape (...out, I) as a matrix (O, I), with its rows in the order of the channels."""
        order = [dim for dim in self.order if dim < self.outputs]
        return weight.permute(*order, weight.dim() - 1).flatten(0, -2)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the outputs, shape (..., O), of inputs (..., I)."""
        matrix_OI = weight.permute(self.order).flatten(0, self.outputs - 1).flatten(1)
        return F.linear(x, matrix_OI, bias)


class Attention(nn.Module):
    r"""Multi-head self-attention (Vaswani et al., Attention Is All You Need, NeurIPS 2017).

    .. math:: y = W_o \, \big\Vert_h \mathrm{softmax}(s \, q_h k_h^\top) \, v_h + b_o, \qquad s = 1 / \sqrt{D}

    A narrower net has the same number of heads with fewer channels D each, as in HeteroFL. The heads and the choice of
    query, key and value are separate dimensions, which are never scaled: ``qkv_weight`` is (D, 3, heads, E) and
    ``out_weight`` (E, heads, D). Therefore the leading block of every tensor is a narrower attention, and so is any
    other choice of channels that is the same for dimensions of equal size. If the scale s has the D of the full width
    at every width, a narrow net computes the same as the full net with the other channels at 0; in HeteroFL's code it
    has the D of the narrow net.

    Args:
        channels: channels E of input and output at width 1.
        heads: number of heads; never scaled.
        width: width ratio in (0, 1]; a Scaler follows query, key and value, and another the output.
        bias: whether query, key and value have biases, ``qkv_bias`` (D, 3, heads), initialised with 0.
        temperature: ``global``: the scale has the D of the full width; ``local``: that of this net.

    Raises:
        ConfigurationError: the heads do not divide the channels, or the temperature is unknown.
    """

    def __init__(
        self, channels: int, heads: int, width: float, bias: bool = False, temperature: Temperature = "global"
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ConfigurationError(f"Expected heads that divide {channels} channels but got {heads}")
        if temperature not in ("global", "local"):
            raise ConfigurationError(f"Expected temperature in ('global', 'local') but got {temperature!r}")
        narrow, head = scaled(channels, width), scaled(channels // heads, width)
        self.scale = (channels // heads if temperature == "global" else head) ** -0.5
        self.qkv_bias = nn.Parameter(torch.zeros(head, 3, heads)) if bias else None
        self.qkv_weight = nn.Parameter(torch.empty(head, 3, heads, narrow))
        self.out_weight = nn.Parameter(torch.empty(narrow, heads, head))
        self.out_bias = nn.Parameter(torch.zeros(narrow))
        for weight, incoming in ((self.qkv_weight, narrow), (self.out_weight, heads * head)):
            nn.init.uniform_(weight, -1 / math.sqrt(incoming), 1 / math.sqrt(incoming))
        self.qkv, self.out = Projection((1, 2, 0, 3), outputs=3), Projection((0, 1, 2), outputs=1)
        self.scaler = Scaler(width)

    def forward(self, x_NTE: Tensor, reads: Tensor | None = None) -> Tensor:
        """Return the output of the attention for every token, shape (N, T, E).

        Args:
            x_NTE: channels of the tokens.
            reads: which tokens each token attends to (:func:`attended`); None: all tokens.
        """
        head, _, heads, _ = self.qkv_weight.shape
        bias = None if self.qkv_bias is None else self.qkv_bias.permute(1, 2, 0).flatten()
        qkv_NTC = self.scaler(self.qkv(x_NTE, self.qkv_weight, bias))
        query, key, value = qkv_NTC.unflatten(-1, (3, heads, head)).permute(2, 0, 3, 1, 4).unbind(0)
        scores_NHTT = query @ key.mT * self.scale
        if reads is not None:
            scores_NHTT = scores_NHTT.masked_fill(~reads, -torch.inf)
        read_NHTD = scores_NHTT.softmax(-1) @ value
        out_NTE: Tensor = self.scaler(self.out(read_NHTD.transpose(1, 2).flatten(2), self.out_weight, self.out_bias))
        return out_NTE


class Block(nn.Module):
    """Layer norm and attention, then layer norm, linear, GELU, linear; each of the two is added to its input.

    The norms come first, so a block with zero weights is the identity, and the first blocks of a deep net are a
    shallower net. A Scaler follows every linear map.

    Args:
        channels: channels E of a token at width 1.
        heads: number of heads; never scaled.
        feed_forward: channels between the two linear layers at width 1.
        dropout: dropout probability of the added channels.
        width: width ratio in (0, 1].

    Raises:
        ConfigurationError: the heads do not divide the channels.
    """

    def __init__(self, channels: int, heads: int, feed_forward: int, dropout: float, width: float) -> None:
        super().__init__()
        narrow, hidden = scaled(channels, width), scaled(feed_forward, width)
        self.attention_norm = nn.LayerNorm(narrow)
        self.attention = Attention(channels, heads, width)
        self.feed_forward_norm = nn.LayerNorm(narrow)
        self.feed_forward = nn.Sequential(
            nn.Linear(narrow, hidden), Scaler(width), nn.GELU(), nn.Linear(hidden, narrow), Scaler(width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_NTE: Tensor, reads: Tensor | None = None) -> Tensor:
        """Return the output of the block for every token, shape (N, T, E).

        Args:
            x_NTE: channels of the tokens.
            reads: which tokens each token attends to (:func:`attended`); None: all tokens.
        """
        x_NTE = x_NTE + self.dropout(self.attention(self.attention_norm(x_NTE), reads))
        out_NTE: Tensor = x_NTE + self.dropout(self.feed_forward(self.feed_forward_norm(x_NTE)))
        return out_NTE
