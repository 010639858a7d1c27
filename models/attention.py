"""Attention and the Transformer's block, in shapes whose leading blocks are narrower heads."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl.errors import ConfigurationError
from hetfl.models.layers import Scaler, scaled


def attended(mask_NT: Tensor | None, causal: bool, length: int, device: torch.device) -> Tensor | None:
    """Return which tokens (last dimension) each token reads: bool, (N, 1, T, T) or (T, T); None: all of them.

    No token reads padding or, if ``causal``, later tokens. Every token reads itself, so that none reads nothing.

    Args:
        mask_NT: where tokens are no padding; None: everywhere.
        causal: whether a token reads only itself and those before it.
        length: number of tokens T.
        device: where the result lies.
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


class Attention(nn.Module):
    r"""Self-attention of several heads (Vaswani et al., Attention Is All You Need, NeurIPS 2017).

    .. math:: y = W_o \, \big\Vert_h \mathrm{softmax}(s \, q_h k_h^\top) \, v_h + b_o, \qquad s = 1 / \sqrt{D}

    A narrower net has as many heads, each of fewer channels, as in HeteroFL. The heads and the choice of query, key and
    value are dimensions of their own, which are never scaled: ``qkv_weight`` is (D, 3, heads, E) and ``out_weight``
    (E, heads, D). So the leading block of every tensor is a narrower attention, and so is any choice of channels that
    is the same for equal sizes. Query, key and value have no biases. The scale s is that of the full width at every
    width: a narrow net computes what the full one does with the other channels at 0. (HeteroFL's code takes the narrow
    net's own D, and has biases.)

    Args:
        channels: channels E of input and output at width 1.
        heads: number of heads; never scaled.
        width: width ratio in (0, 1]; Scalers are behind query, key and value, and behind the output.

    Raises:
        ConfigurationError: the heads do not divide the channels.
    """

    def __init__(self, channels: int, heads: int, width: float) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ConfigurationError(f"Expected heads that divide {channels} channels but got {heads}")
        self.scale = (channels // heads) ** -0.5
        narrow, head = scaled(channels, width), scaled(channels // heads, width)
        self.qkv_weight = nn.Parameter(torch.empty(head, 3, heads, narrow))
        self.out_weight = nn.Parameter(torch.empty(narrow, heads, head))
        self.out_bias = nn.Parameter(torch.zeros(narrow))
        for weight, incoming in ((self.qkv_weight, narrow), (self.out_weight, heads * head)):
            nn.init.uniform_(weight, -1 / math.sqrt(incoming), 1 / math.sqrt(incoming))
        self.scaler = Scaler(width)

    def forward(self, x_NTE: Tensor, reads: Tensor | None = None) -> Tensor:
        """Return what every token reads, shape (N, T, E).

        Args:
            x_NTE: channels of the tokens.
            reads: which tokens each token reads (:func:`attended`).
        """
        head, _, heads, _ = self.qkv_weight.shape
        qkv_NTC = self.scaler(F.linear(x_NTE, self.qkv_weight.permute(1, 2, 0, 3).flatten(0, 2)))
        query, key, value = qkv_NTC.unflatten(-1, (3, heads, head)).permute(2, 0, 3, 1, 4).unbind(0)
        scores_NHTT = query @ key.mT * self.scale
        if reads is not None:
            scores_NHTT = scores_NHTT.masked_fill(~reads, -torch.inf)
        read_NHTD = scores_NHTT.softmax(-1) @ value
        out_NTE: Tensor = self.scaler(
            F.linear(read_NHTD.transpose(1, 2).flatten(2), self.out_weight.flatten(1), self.out_bias)
        )
        return out_NTE


class Block(nn.Module):
    """Layer norm and attention, then layer norm, linear, GELU, linear; each added to its input.

    The norms come first, so a block whose weights are all 0 hands on its input: the first blocks of a deep net are a
    shallower net. A Scaler is behind every linear map.

    Args:
        channels: channels E of a token at width 1.
        heads: number of heads; never scaled.
        feed_forward: channels between the two linear layers at width 1.
        dropout: share of the added channels that training leaves out.
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
        """Return the tokens' channels behind the block, shape (N, T, E).

        Args:
            x_NTE: channels of the tokens.
            reads: which tokens each token reads (:func:`attended`).
        """
        x_NTE = x_NTE + self.dropout(self.attention(self.attention_norm(x_NTE), reads))
        out_NTE: Tensor = x_NTE + self.dropout(self.feed_forward(self.feed_forward_norm(x_NTE)))
        return out_NTE
