"""Small nets for token ids, and the same nets in NumPy on chosen channels of a global model's weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hetfl.models import LSTM, MultiExitTransformer, Transformer
from hetfl.part import Part

Array = NDArray[np.float64]
VOCABULARY, CLASSES = 50, 4

SMALL: dict[str, Callable[..., nn.Module]] = {
    "lstm": partial(LSTM, VOCABULARY, channels=6, hidden=10, layers=2),
    "transformer": partial(Transformer, VOCABULARY, channels=12, heads=3, feed_forward=20, layers=3),
    "exits": partial(MultiExitTransformer, VOCABULARY, channels=12, heads=3, feed_forward=20, layers=3),
}
"""All scaled sizes differ, except for those that must be equal."""


def tokens(samples: int, length: int = 7, seed: int = 0) -> Tensor:
    """Return random ids."""
    return torch.randint(VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(seed))


def positions(part: Part, name: str, dim: int) -> NDArray[np.int64]:
    """Return the positions of a dimension of a tensor that a part holds."""
    held = part[name][dim]
    return np.arange(held.start, held.stop) if isinstance(held, slice) else held.numpy()


def lstm_by_hand(weights: Mapping[str, Array], ids: NDArray[np.int64], part: Part, state_scale: float = 1.0) -> Array:
    """Return the logits (K,) of one sequence, unit by unit, from the global weights of the channels that a part holds.

    Args:
        weights: weights of the global net, by name.
        ids: the sequence, shape (T,).
        part: the channels.
        state_scale: factor of states before they are read.
    """
    read = positions(part, "embedding.0.weight", 1)
    units = positions(part, "layers.0.hidden_weight", 0)
    inputs = [{int(c): weights["embedding.0.weight"][i, c] * state_scale for c in read} for i in ids]
    for layer in range(2):
        tensors = {leaf: weights[f"layers.{layer}.{leaf}"] for leaf in ("input_weight", "hidden_weight")}
        biases = [weights[f"layers.{layer}.biases.{gate}"] for gate in range(4)]
        state = {int(u): 0.0 for u in units}
        cell, states = dict(state), []
        for x in inputs:
            gates = {
                u: [
                    biases[gate][u]
                    + sum(tensors["input_weight"][u, gate, c] * value for c, value in x.items())
                    + sum(tensors["hidden_weight"][u, gate, v] * value for v, value in state.items())
                    for gate in range(4)
                ]
                for u in state
            }
            cell = {u: _sigmoid(f) * cell[u] + _sigmoid(i) * math.tanh(g) for u, (i, f, g, _) in gates.items()}
            state = {u: _sigmoid(o) * math.tanh(cell[u]) * state_scale for u, (_, _, _, o) in gates.items()}
            states.append(state)
        inputs = states
    mean = {u: sum(state[u] for state in inputs) / len(inputs) for u in inputs[0]}
    classifier = weights["classifier.weight"]
    logits: Array = weights["classifier.bias"] + sum(classifier[:, u] * value for u, value in mean.items())
    return logits


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def transformer_by_hand(weights: Mapping[str, Array], ids: NDArray[np.int64], part: Part, scale: float = 1.0) -> Array:
    """Return the logits (K,) of one sequence, head by head, from the global weights of the channels that a part holds.

    Args:
        weights: weights of the global net, by name.
        ids: the sequence, shape (T,).
        part: the channels and the number of blocks.
        scale: factor of the output of every linear map.
    """
    held = positions(part, "embedding.token.weight", 1)
    x = (weights["embedding.token.weight"][ids] + weights["embedding.position"][: len(ids)])[:, held] * scale

    def norm(x: Array, name: str) -> Array:
        standard = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        scaled: Array = standard * weights[f"{name}.weight"][held] + weights[f"{name}.bias"][held]
        return scaled

    for block in range(sum(name.endswith("out_bias") for name in part)):
        name = f"blocks.{block}."
        tensors = {leaf: weights[name + leaf] for leaf in ("attention.qkv_weight", "attention.out_weight")}
        head, hidden = (positions(part, name + leaf, 0) for leaf in ("attention.qkv_weight", "feed_forward.0.weight"))
        normed, out = norm(x, name + "attention_norm"), weights[name + "attention.out_bias"][held]
        for h in range(3):
            q, k, v = (normed @ tensors["attention.qkv_weight"][:, i, h][np.ix_(head, held)].T for i in range(3))
            scores = np.exp((q * scale) @ (k * scale).T / math.sqrt(4))
            attention = scores / scores.sum(1, keepdims=True)
            out = out + attention @ (v * scale) @ tensors["attention.out_weight"][:, h][np.ix_(held, head)].T
        x = x + out * scale
        first, second = (weights[f"{name}feed_forward.{i}.weight"] for i in (0, 3))
        z = norm(x, name + "feed_forward_norm") @ first[np.ix_(hidden, held)].T
        z = (z + weights[name + "feed_forward.0.bias"][hidden]) * scale
        z = z * 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
        x = x + (z @ second[np.ix_(held, hidden)].T + weights[name + "feed_forward.3.bias"][held]) * scale
    logits: Array = norm(x, "norm").mean(0) @ weights["classifier.weight"][:, held].T + weights["classifier.bias"]
    return logits
