"""Checks before a run that the leading block of every tensor of the global net makes a working sub-model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.models.exits import exits_of
from hetfl.models.static_batch_norm import gathering
from hetfl.submodel import put, state_of, take
from hetfl.tree import Tree, cast, leaves, taken

CROSS_CHANNEL_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
FEW = 64
"""Values per channel that are compared to identify the channel."""


def check_nesting(whole: nn.Module, part: nn.Module, index: Index, inputs_N: Tree, level: str) -> None:
    """Refuse a net whose sub-model is not its leading channels, or its first stages.

    A net nests if the global net, with every entry outside the index set to zero, computes the same outputs as the
    sub-model. A net does not nest if a tensor's positions mix channels with something else: a flatten in channels-last
    order before a classifier, a concatenation of branches, attention heads. It also does not nest if an exit reads a
    later stage than its own, or if a tensor's name depends on the depth. Both nets are compared in float64 in
    evaluation mode, with batch statistics in batch norm. Norms across channels are reduced to their affine part,
    because their statistics differ in any sub-model.

    Args:
        whole: the global net; if it has an exit per stage, its outputs have a leading dimension.
        part: the level's net; its values are replaced in a copy. Its exits are compared with the global net's first.
        index: the part of the global net that the level holds.
        inputs_N: a few samples, as inputs of the nets.
        level: the level's name, for messages.

    Raises:
        ConfigurationError: the outputs differ; names the tensor with the largest share of entries whose gradient is
            zero in the global net but not in the sub-model.
    """
    whole, part = (prepared(net) for net in (whole, part))
    randomise(whole)
    tensors = state_of(whole)
    for name, tensor in state_of(part).items():
        tensor.data.copy_(take(tensors[name], index[name]))
    others = dict(whole.named_buffers())
    for name, buffer in part.named_buffers():
        if name not in tensors and name in others and buffer.shape == others[name].shape:
            buffer.copy_(others[name])
    _zero_outside(tensors, index)
    inputs_N, exits = cast(taken(inputs_N, slice(_enough(inputs_N))), torch.float64), exits_of(part)
    with torch.no_grad():
        expected = run(part, inputs_N)
        outputs = run(whole, inputs_N, exits)
    if outputs.shape == expected.shape and torch.allclose(outputs, expected, rtol=1e-6, atol=1e-9):
        return
    layer = _first_that_differs(whole, part, inputs_N)
    wanted, gradients = _gradients(part, inputs_N), _gradients(whole, inputs_N, exits)
    of_layer = {name: gradient for name, gradient in wanted.items() if not layer or name.startswith(f"{layer}.")}
    raise ConfigurationError(
        f"Expected the net at level {level} to be the leading channels and first stages of the global net but got "
        f"different outputs{f' from layer {layer!r} on' if layer else ''}{_culprit(gradients, of_layer, index)}: its "
        "positions are not channels alone (a flatten, a concatenation or attention heads?), an exit reads more than "
        "its own stage, or a name depends on the depth; choose a part rule for this net, or set check_nesting to "
        "false if this is intended"
    )


def prepared(net: nn.Module) -> nn.Module:
    """Return a copy of a net in float64 on the CPU, whose norms across channels are their affine part alone."""
    net = copy.deepcopy(net).double().cpu()
    for module in net.modules():
        if isinstance(module, CROSS_CHANNEL_NORMS):
            module.forward = _affine(module)  # type: ignore[method-assign,assignment]
    return net


def _affine(norm: nn.GroupNorm | nn.LayerNorm | nn.RMSNorm) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if norm.weight is None:
            return x
        shape = [-1] + [1] * (x.dim() - 2) if isinstance(norm, nn.GroupNorm) else list(norm.weight.shape)
        bias = getattr(norm, "bias", None)
        return x * norm.weight.view(shape) + (0.0 if bias is None else bias.view(shape))

    return forward


def randomise(net: nn.Module) -> None:
    """Move every value away from initial ones and zeros, which would hide differences."""
    random = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        # In place: for a large net, temporary tensors take longer than the comparison itself.
        noise = torch.rand(parameter.shape, generator=random, dtype=parameter.dtype).add_(0.5)
        parameter.data.mul_(noise).add_(noise.sub_(1.0), alpha=0.05)


def _zero_outside(tensors: Mapping[str, Tensor], index: Index) -> None:
    for name, tensor in tensors.items():
        inside = torch.zeros_like(tensor)
        if name in index:
            put(inside, index[name], torch.ones_like(take(tensor, index[name])))
        tensor.data.mul_(inside)


def _enough(inputs_N: Tree) -> int:
    """Return the number of samples to compare: fewer for large images, which have many positions per sample.

    Two values per channel would hide a wrong scale: batch norm maps any two values to plus and minus one.
    """
    positions: int = min(math.prod(leaf.shape[2:]) for leaf in leaves(inputs_N))
    return max(2, math.ceil(2048 / max(positions, 1)))


def run(net: nn.Module, inputs_N: Tree, exits: int | None = None) -> Tensor:
    """Return the outputs in evaluation mode, with batch statistics in static batch norm.

    Args:
        net: a net in float64.
        inputs_N: its inputs.
        exits: the number of first exits whose outputs are returned; None: the net has none, or all of them.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with gathering(net):
            outputs: Tensor = net(inputs_N)
    finally:
        torch.set_default_dtype(default)
    return outputs if exits is None else outputs[:exits]


def _gradients(net: nn.Module, inputs_N: Tree, exits: int | None = None) -> dict[str, Tensor]:
    """Return the gradients of a weighted sum of the squared outputs."""
    outputs = run(net, inputs_N, exits)
    weights = torch.rand(outputs.shape, generator=torch.Generator().manual_seed(0), dtype=outputs.dtype)
    (weights * outputs.square()).sum().backward()
    zero = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    return {name: zero[name] if p.grad is None else p.grad for name, p in net.named_parameters()}


def _first_that_differs(whole: nn.Module, part: nn.Module, inputs_N: Tree) -> str:
    """Return the first layer with an output channel in the part that no output channel of the whole equals.

    Positions of channels are not compared: a layer that mixes channels has no channel that equals the part's.

    Returns:
        The layer's name; empty if there is no such layer.
    """
    outputs = [_outputs(net, inputs_N) for net in (part, whole)]
    for name, got in outputs[0].items():
        of_whole = outputs[1].get(name)
        if of_whole is not None and got.dim() == of_whole.dim() and not _is_among(got, of_whole):
            return name
    return ""


def _outputs(net: nn.Module, inputs_N: Tree) -> dict[str, Tensor]:
    """Return the first output of every layer without sub-layers, in the order of the calls."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            outputs.setdefault(name, first.detach())

    hooks = [
        layer.register_forward_hook(lambda _, inputs, output, name=name: keep(name, output))
        for name, layer in net.named_modules()
        if name and not list(layer.children())
    ]
    with torch.no_grad():
        run(net, inputs_N)
    for hook in hooks:
        hook.remove()
    return outputs


def _is_among(one: Tensor, whole: Tensor) -> bool:
    """Return whether every channel of ``one`` is a channel of ``whole``; channels lie in the dimension that differs."""
    differing = [dim for dim, (a, b) in enumerate(zip(one.shape, whole.shape, strict=True)) if a != b]
    if len(differing) > 1:
        return False
    if not differing:
        return torch.allclose(one, whole, rtol=1e-6, atol=1e-9)
    mine_CX, theirs_CX = (tensor.movedim(differing[0], 0).flatten(1)[:, :FEW] for tensor in (one, whole))
    near_CC = torch.isclose(mine_CX.unsqueeze(1), theirs_CX.unsqueeze(0), rtol=1e-6, atol=1e-9).all(-1)
    return bool(near_CC.any(1).all())


def _culprit(whole: Mapping[str, Tensor], part: Mapping[str, Tensor], index: Index) -> str:
    """Return text that names the tensor with the largest share of dead entries; of several, the last."""
    worst, text = 0.0, ""
    for name, gradient in part.items():
        dead = (take(whole[name], index[name]) == 0) & (gradient != 0)
        share = dead.sum().item() / max(int(gradient.count_nonzero()), 1)
        if share and share >= worst:
            worst, text = share, f" ({share:.0%} of {name!r} meets channels or stages that the level does not have)"
    return text
