"""An LSTM for token ids, scaled in width, with a separate dimension for the four gates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl.errors import ConfigurationError
from hetfl.models.layers import Scaler, make_classifier, scaled
from hetfl.models.tokens import Pooling, TokenInputs, check_pooling, pooled, tokens_and_mask


class LSTMLayer(nn.Module):
    r"""Long short-term memory (Hochreiter, Schmidhuber, Neural Computation 1997; Gers et al., 2000).

    .. math:: i, f, o = \sigma(W x_t + U h_{t-1} + b), \quad g = \tanh(W x_t + U h_{t-1} + b), \quad
        c_t = f c_{t-1} + i g, \quad h_t = o \tanh(c_t)

    with separate weights and a bias for each of i, f, g, o. The gates, in this order, are a separate dimension, which
    is never scaled: ``input_weight`` is (H, 4, C), ``hidden_weight`` (H, 4, H), each of the four ``biases`` (H).
    Therefore the leading block of every tensor is a narrower layer, and so is any other choice of channels that is the
    same for dimensions of equal size. (In ``nn.LSTM`` the gates are stacked along the first dimension, and a leading
    block has only the first gates.) The layer computes the same as an ``nn.LSTM`` whose two biases add up to these.

    Args:
        incoming: channels C of the input.
        hidden: channels H of the state.
        width: ratio for the Scaler, which is applied to the state h.
    """

    def __init__(self, incoming: int, hidden: int, width: float) -> None:
        super().__init__()
        self.input_weight = nn.Parameter(torch.empty(hidden, 4, incoming))
        self.hidden_weight = nn.Parameter(torch.empty(hidden, 4, hidden))
        self.biases = nn.ParameterList(nn.Parameter(torch.empty(hidden)) for _ in range(4))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden))
        self.scaler = Scaler(width)

    def forward(self, x_NTC: Tensor, mask_NT: Tensor | None = None) -> Tensor:
        """Return the states, shape (N, T, H).

        Args:
            x_NTC: the inputs.
            mask_NT: False at padding, which does not change the state; None: no padding.
        """
        recurrent = self.hidden_weight.transpose(0, 1).flatten(0, 1)
        steps = F.linear(x_NTC, self.input_weight.transpose(0, 1).flatten(0, 1), torch.cat(list(self.biases))).unbind(1)
        hidden = cell = steps[0].new_zeros(len(x_NTC), len(self.hidden_weight))
        states = []
        for t, step in enumerate(steps):
            i, f, g, o = (step + F.linear(hidden, recurrent)).chunk(4, -1)
            next_cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            next_hidden = self.scaler(o.sigmoid() * next_cell.tanh())
            if mask_NT is not None:
                real_N1 = mask_NT[:, t, None]
                next_cell, next_hidden = next_cell.where(real_N1, cell), next_hidden.where(real_N1, hidden)
            hidden, cell = next_hidden, next_cell
            states.append(hidden)
        return torch.stack(states, 1)


class LSTM(nn.Module):
    """Embedding, Scaler, LSTM layers with a Scaler each, mean over the tokens, linear.

    Channels of a token and of the states are scaled; vocabulary and classes are not. Inputs are token ids, so there is
    no ``in_channels``. The LSTM reads forward in time only, so a language model is causal.

    Args:
        vocab_size: number of token ids V, including an id for padding if there is one.
        num_classes: outputs K; None: V, for a language model.
        channels: channels of the embedding at width 1.
        hidden: channels of the states at width 1.
        layers: number of stacked LSTM layers.
        pooling: ``mean`` over the tokens, for one output per sequence; ``none`` for one output per token.
        padding: the id of padding in inputs without a mask; None: no padding.
        dropout: dropout probability of the embedding and of the states of every layer.
        width: width ratio in (0, 1].

    Raises:
        ConfigurationError: the width is out of range, the pooling is unknown, or ``layers`` is below 1.
    """

    def __init__(
        self,
        vocab_size: int,
        num_classes: int | None = None,
        channels: int = 64,
        hidden: int = 128,
        layers: int = 1,
        pooling: Pooling = "mean",
        padding: int | None = None,
        dropout: float = 0.0,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        check_pooling(pooling)
        if layers < 1:
            raise ConfigurationError(f"Expected at least 1 layer but got {layers}")
        self.pooling, self.padding = pooling, padding
        narrow, state = scaled(channels, width), scaled(hidden, width)
        self.embedding = nn.Sequential(nn.Embedding(vocab_size, narrow), Scaler(width))
        self.layers = nn.ModuleList(LSTMLayer(state if i else narrow, state, width) for i in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.classifier = make_classifier(state, vocab_size if num_classes is None else num_classes)

    def forward(self, inputs: TokenInputs) -> Tensor:
        """Return the logits, shape (N, K), or (N, T, K) without pooling.

        Args:
            inputs: token ids (N, T), or a mapping of ``tokens`` and ``mask``, each (N, T).
        """
        tokens_NT, mask_NT = tokens_and_mask(inputs, self.padding)
        features = self.dropout(self.embedding(tokens_NT))
        for layer in self.layers:
            features = self.dropout(layer(features, mask_NT))
        logits: Tensor = self.classifier(pooled(features, mask_NT, self.pooling))
        return logits
