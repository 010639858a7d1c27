"""A reference client: local training, and the selection of the entries that it sends."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tests.reference.layers import Array, Pass, Tensors
from tests.reference.nets import Net, Objective
from tests.reference.rules import Client, Rules, Samples, is_buffer
from tests.wire_by_hand import index_block

Masks = dict[str, NDArray[np.bool_]]
"""Masks of the entries that a client holds among those at its positions; a missing tensor is held whole."""

HEADER = 56
DOUBLE, SINGLE = 8, 4
"""Bytes of a value in a client's message, which has the run's precision, and of a value counted as float32."""


def batches(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Cut an order of samples into batches; a last batch of one sample joins the batch before it."""
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    if len(parts) > 1 and len(parts[-1]) == 1 < size:
        parts[-2:] = [np.concatenate(parts[-2:])]
    return parts


def objective(rules: Rules, client: Client, samples: Samples, rows: NDArray[np.int64], w: float) -> Objective:
    return Objective(samples.y[rows], ~client.owned if rules.masked else None, w)


def train(
    net: Net,
    rules: Rules,
    client: Client,
    anchor: Tensors,
    memory: Tensors,
    masks: Masks,
    orders: Iterable[NDArray[np.int64]],
    lr: float,
    w: float,
) -> tuple[Tensors, float]:
    """Train with SGD; return the change of the client's sub-model and the mean loss over the processed samples."""
    theta = {name: value.copy() for name, value in anchor.items()}
    velocity: Tensors = {}
    total, passed = 0.0, 0
    for rows in (rows for order in orders for rows in batches(order, rules.batch)):
        goal = objective(rules, client, client.train, rows, w)
        loss, grads = net.gradients(theta, client.train.x[rows], Pass(training=True), goal)
        total, passed = total + loss * len(rows), passed + len(rows)
        for name in grads:
            grads[name] = grads[name] + (rules.proximal + rules.feddyn) * (theta[name] - anchor[name])
            grads[name] = (grads[name] - memory.get(name, 0.0)) * masks.get(name, 1.0)
        if rules.clip is not None:
            norm = np.sqrt(sum((grad**2).sum() for grad in grads.values()))
            grads = {name: grad * min(1.0, rules.clip / (norm + 1e-6)) for name, grad in grads.items()}
        for name, grad in grads.items():
            step = grad + rules.weight_decay * theta[name]
            velocity[name] = rules.momentum * velocity[name] + step if name in velocity else step
            theta[name] = theta[name] - lr * velocity[name]
    return {name: theta[name] - anchor[name] for name in theta}, total / passed


def loss_of(net: Net, rules: Rules, client: Client, theta: Tensors, w: float) -> float:
    """Return the mean loss of a model on all of a client's data in training mode."""
    everything = np.arange(len(client.train))
    how = Pass(training=True)
    logits, _ = net.forward({name: value.copy() for name, value in theta.items()}, client.train.x, how)
    return objective(rules, client, client.train, everything, w)(logits)[0]


Chosen = NDArray[np.int64] | None
"""Positions of the sent entries, ascending; None: all entries, in a dense message."""


def chosen(density: float | None, threshold: float | None, vector: Array) -> Chosen:
    """Return the positions to send: entries at or above a threshold, or the largest ones if there is no threshold."""
    if threshold is not None:
        return np.flatnonzero((np.abs(vector) >= threshold) & (vector != 0))
    if density is not None:
        count = min(len(vector), max(1, int(density * len(vector))))
        return np.sort(np.argsort(-np.abs(vector), kind="stable")[:count])
    return None


def message_bytes(size: int, sent: Chosen, exact: int) -> int:
    if sent is None:
        return HEADER + DOUBLE * (size + exact)
    return HEADER + len(index_block(sent.tolist())) + DOUBLE * (len(sent) + exact)


def dense_bytes(entries: int, itemsize: int = SINGLE) -> int:
    return HEADER + itemsize * entries


def model_bytes(entries: int) -> int:
    """Return the bytes of a download; models are float64."""
    return dense_bytes(entries, 8)


Positions = dict[str, tuple[NDArray[np.int64], ...]]
"""Positions of a sub-model's entries in the global tensors, per dimension."""


def positions(rules: Rules, level: str) -> Positions:
    """Return the positions of a level's entries."""
    return {name: tuple(np.arange(size) for size in shape) for name, shape in rules.shapes[level].items()}


def owned(rules: Rules, where: Positions, classes: NDArray[np.bool_]) -> Positions:
    """Return the part of a client's positions that it sends with these classes."""
    if not rules.masked:
        return where
    rows = np.flatnonzero(classes)
    return {name: (rows, *each[1:]) if name.startswith("classifier.") else each for name, each in where.items()}


def parameters(where: Positions) -> list[str]:
    return [name for name in where if not is_buffer(name)]


def flat(tensors: Tensors, where: Positions, names: list[str], masks: Masks) -> Array:
    """Return the held entries as one vector, tensor after tensor."""
    cut = {name: np.ix_(*where[name]) for name in names}
    parts = [tensors[name][cut[name]][masks[name][cut[name]] if name in masks else ...].ravel() for name in names]
    return np.concatenate([np.empty(0), *parts])


def write(tensors: Tensors, where: Positions, names: list[str], vector: Array, masks: Masks) -> None:
    start = 0
    for name in names:
        cut = np.ix_(*where[name])
        part = tensors[name][cut]
        held = masks[name][cut] if name in masks else np.ones(part.shape, dtype=bool)
        stop = start + int(held.sum())
        part[held] = vector[start:stop]
        tensors[name][cut] = part
        start = stop
