"""HeteroFL's Transformer in plain torch with flat query, key and value layers: the net, its slices, and a round.

Slices are index sets over flat dimensions, in which the channels of a head are neighbours. Nets, parts and
aggregators of the package are not used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
PER_HEAD = ("query", "key", "value")


def flat(state: Weights) -> dict[str, Tensor]:
    """Return the tensors of a ``PostNormTransformer`` in flat layout, detached, under this module's names."""
    tensors = {name: value.detach().clone() for name, value in state.items()}
    weights = {"embedding": tensors.pop("embedding.token.weight"), "position": tensors.pop("embedding.position")}
    for name, value in tensors.items():
        if name.endswith("qkv_weight"):  # (channel of a head, which, head, E)
            for which, key in enumerate(PER_HEAD):
                weights[name.replace("qkv_weight", f"{key}.weight")] = value[:, which].transpose(0, 1).flatten(0, 1)
        elif name.endswith("qkv_bias"):
            for which, key in enumerate(PER_HEAD):
                weights[name.replace("qkv_bias", f"{key}.bias")] = value[:, which].T.flatten()
        elif name.endswith("out_weight"):
            weights[name.replace("out_weight", "out.weight")] = value.flatten(1)
        else:
            weights[name.replace("out_bias", "out.bias")] = value
    return weights


def slices(weights: Weights, rate: float, heads: int) -> dict[str, list[Tensor]]:
    """Return for each dimension of each tensor the positions of a client of a rate."""
    positions = {}
    for name, value in weights.items():
        layer = name.split(".")[-2] if "." in name else name
        dims = []
        for dim, size in enumerate(value.shape):
            everything = torch.arange(size)
            prefix = everything[: math.ceil(size * rate)]
            per_head = everything.view(heads, -1)[:, : math.ceil(size // heads * rate)] if not size % heads else prefix
            whole = dim == 0 and layer in ("embedding", "position", "classifier")
            by_head = (layer in PER_HEAD and dim == 0) or (layer == "out" and dim == 1)
            dims.append(everything if whole else per_head.flatten() if by_head else prefix)
        positions[name] = dims
    return positions


def cut(value: Tensor, dims: Sequence[Tensor]) -> Tensor:
    """Return the entries at the positions of each dimension."""
    return value[torch.meshgrid(*dims, indexing="ij")].clone()


def _norm(x: Tensor, p: Weights, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def _linear(x: Tensor, p: Weights, name: str) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def logits_of(p: Weights, ids: Tensor, heads: int, rate: float) -> Tensor:
    """Return the logits (N, T, K) of a client's tensors, without dropout; ``rate`` is 1 in evaluation."""
    x = _norm(p["embedding"][ids] / rate + p["position"][: ids.shape[1]] / rate, p, "embedding_norm")
    for block in range(sum(name.endswith("out.bias") for name in p)):
        name = f"blocks.{block}"
        query, key, value = (_linear(x, p, f"{name}.attention.{each}") / rate for each in PER_HEAD)
        channels = query.shape[-1] // heads
        read = []
        for head in range(heads):
            of = slice(head * channels, (head + 1) * channels)
            scores = query[..., of] @ key[..., of].transpose(1, 2) / math.sqrt(x.shape[-1] // heads)
            read.append(scores.softmax(-1) @ value[..., of])
        x = _norm(x + _linear(torch.cat(read, -1), p, f"{name}.attention.out") / rate, p, f"{name}.attention_norm")
        hidden = _gelu(_linear(x, p, f"{name}.feed_forward.0") / rate)
        x = _norm(x + _linear(hidden, p, f"{name}.feed_forward.4") / rate, p, f"{name}.feed_forward_norm")
    return _linear(_norm(_gelu(_linear(x, p, "decoder.0") / rate), p, "decoder.3"), p, "classifier")


def trained(
    start: Weights, batches: Sequence[tuple[Tensor, Tensor]], owned_K: Tensor, heads: int, rate: float, lr: float
) -> dict[str, Tensor]:
    """Return a client's tensors after SGD with momentum 0.9, weight decay 0.01 and gradients of norm at most 1.

    Args:
        start: the client's tensors.
        batches: masked tokens and targets of each step.
        owned_K: the tokens that the client has; the logits of the others are 0 in the loss.
        heads: number of heads.
        rate: the client's rate.
        lr: learning rate.
    """
    p = {name: value.clone().requires_grad_() for name, value in start.items()}
    momentum = {name: torch.zeros_like(value) for name, value in start.items()}
    for ids, targets in batches:
        logits = torch.where(owned_K, logits_of(p, ids, heads, rate), 0.0)
        loss = (logits.logsumexp(-1) - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)).mean()
        gradients = dict(zip(p, torch.autograd.grad(loss, list(p.values())), strict=True))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        for name, value in p.items():
            gradient = gradients[name] * min(1.0, 1.0 / (norm + 1e-6)) + 0.01 * value.detach()
            momentum[name] = 0.9 * momentum[name] + gradient
            value.data -= lr * momentum[name]
    return {name: value.detach() for name, value in p.items()}


def combined(whole: Weights, clients: Sequence[tuple[Weights, dict[str, list[Tensor]], Tensor]]) -> dict[str, Tensor]:
    """Return the mean over holders; embedding and classifier have the rows of a client's own tokens only.

    Args:
        whole: the global tensors.
        clients: tensors, positions and own tokens of each client.
    """
    result = {}
    for name, value in whole.items():
        total, count = torch.zeros_like(value), torch.zeros_like(value)
        for tensors, positions, owned_K in clients:
            dims, sent = positions[name], tensors[name]
            if name.split(".")[0] in ("embedding", "classifier"):
                rows = owned_K.nonzero().flatten()
                dims, sent = [rows, *dims[1:]], sent[rows]
            at = torch.meshgrid(*dims, indexing="ij")
            total[at] += sent
            count[at] += 1
        result[name] = torch.where(count > 0, total / count.clamp(min=1), value)
    return result
