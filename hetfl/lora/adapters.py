"""Adapters of single layers: two trained factors beside the layer's frozen weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl.errors import ConfigurationError
from hetfl.factors import A, B, matrices
from hetfl.models.attention import Projection

Scale = Literal["global", "local", "rslora"]
"""The factor of a product: α/R at every level; α/r of the level's own rank r; or α/√R (Kalajdzievski, 2023)."""


def scale_of(scale: Scale, alpha: float, max_rank: int, rank: int) -> float:
    """Return the factor s of the products BA of a level.

    Args:
        scale: how it depends on ranks.
        alpha: α.
        max_rank: R.
        rank: the level's rank r.

    >>> [scale_of(scale, 16.0, 4, 2) for scale in ("global", "local", "rslora")]
    [4.0, 8.0, 8.0]
    """
    return alpha / {"global": float(max_rank), "local": float(rank), "rslora": math.sqrt(max_rank)}[scale]


def weight_name(net: nn.Module, layer: str) -> str:
    """Return the name of the weight that a layer applies."""
    return f"{layer}_weight" if isinstance(net.get_submodule(layer), Projection) else f"{layer}.weight"


def is_transposed(layer: nn.Module) -> bool:
    """Return whether a layer's weight is (in, out), as in GPT-2 of ``transformers``."""
    return type(layer).__name__ == "Conv1D"


def factor_shapes(net: nn.Module, layer: str, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the shapes of a layer's factors, (r, ...in) and (...out, r); None: the layer cannot have any."""
    module = net.get_submodule(layer)
    if type(module).__name__ == "NonDynamicallyQuantizableLinear":
        return None  # nn.MultiheadAttention reads its weight, and does not call it
    if not isinstance(module, nn.Linear | nn.Conv2d | Projection) and not is_transposed(module):
        return None
    owner, _, leaf = weight_name(net, layer).rpartition(".")
    if (weight := net.get_submodule(owner)._parameters.get(leaf)) is None:
        return None  # a parametrised weight, as of spectral_norm, is computed from others
    shape = weight.shape
    if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
        return None
    if is_transposed(module):
        return (rank, shape[0]), (shape[1], rank)
    outputs = module.outputs if isinstance(module, Projection) else 1  # leading dimensions of the weight
    return (rank, *shape[outputs:]), (*shape[:outputs], rank)


def adapt(net: nn.Module, layer: str, rank: int, scale: float, train_a: bool = True) -> None:
    """Give a layer its factors: A as in a linear layer of A's shape, B zero, so that outputs do not change.

    Args:
        net: the net; its layer gets parameters, and a hook that adds the product's outputs.
        layer: the layer's name.
        rank: number of rows of A.
        scale: factor s of the product.
        train_a: whether A is trained.
    """
    shapes, module = factor_shapes(net, layer, rank), net.get_submodule(layer)
    assert shapes is not None
    weight = net.get_parameter(weight_name(net, layer))
    a, b = (nn.Parameter(weight.new_empty(shape, requires_grad=False)) for shape in shapes)
    nn.init.kaiming_uniform_(a.data.flatten(1), a=math.sqrt(5))
    nn.init.zeros_(b)
    a.requires_grad_(train_a)
    module.register_parameter(A, a)
    module.register_parameter(B, b)
    module.register_forward_hook(AddProduct(scale))


class AddProduct:
    """A hook behind a layer that adds s B A x to its output.

    Args:
        scale: s.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return the adapted output."""
        x, a, b = args[0], getattr(layer, A), getattr(layer, B)
        if isinstance(layer, nn.Conv2d):
            narrow = F.conv2d(x, a, None, layer.stride, layer.padding, layer.dilation)
            return output + self.scale * F.conv2d(narrow, b[..., None, None])
        if isinstance(layer, Projection):
            b = layer.rows(b)
        a_RI, b_OR = matrices(a, b)
        return output + self.scale * F.linear(F.linear(x, a_RI), b_OR)


def scale_at(layer: nn.Module) -> float:
    """Return the factor s of an adapted layer's product."""
    return next(hook.scale for hook in layer._forward_hooks.values() if isinstance(hook, AddProduct))


def scales_of(net: nn.Module) -> dict[str, float]:
    """Return the factor s of the product of each adapted layer of a net, by the layer's name."""
    hooks = {name: layer._forward_hooks.values() for name, layer in adapted_layers(net).items()}
    return {name: hook.scale for name, each in hooks.items() for hook in each if isinstance(hook, AddProduct)}


def adapted_layers(net: nn.Module) -> dict[str, nn.Module]:
    """Return the adapted layers of a net by name."""
    return {name: layer for name, layer in net.named_modules() if B in layer._parameters}


def chosen_layers(net: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the names of the layers that patterns choose, in the order of the net.

    Raises:
        ConfigurationError: a pattern chooses no layer that can have factors, or one whose weight another module has,
            too: a merged product would change both.
    """
    able = [name for name, _ in net.named_modules() if name and factor_shapes(net, name, 1) is not None]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in able):
            raise ConfigurationError(
                f"Expected targets that match layers of the net, such as {', '.join(able[:3]) or 'none'}, but got "
                f"{pattern!r}: linear layers, convolutions without groups and projections of hetfl.models can have them"
            )
    chosen = [name for name in able if any(fnmatchcase(name, pattern) for pattern in patterns)]
    names: dict[nn.Parameter, list[str]] = {}
    for owner, module in net.named_modules():
        for leaf, each in module.named_parameters(recurse=False):
            names.setdefault(each, []).append(f"{owner}.{leaf}" if owner else leaf)
    for layer in chosen:
        weight = weight_name(net, layer)
        if others := [name for name in names[net.get_parameter(weight)] if name != weight]:
            raise ConfigurationError(
                f"Expected targets whose weights no other layer has but got {layer!r}, whose weight is also "
                f"{others[0]!r}: name targets without it"
            )
    return chosen


@torch.no_grad()
def merge(net: nn.Module) -> nn.Module:
    r"""Add every product to its weight, :math:`W \leftarrow W + s B A`, and remove the factors; return the net."""
    for name, layer in adapted_layers(net).items():
        a, b = getattr(layer, A), getattr(layer, B)
        a_RI, b_OR = matrices(a, b)
        change = scale_at(layer) * (b_OR @ a_RI)
        weight = net.get_parameter(weight_name(net, name))
        weight.add_((change.T if is_transposed(layer) else change).reshape(weight.shape))
        del layer._parameters[A], layer._parameters[B]
        for key in [key for key, hook in layer._forward_hooks.items() if isinstance(hook, AddProduct)]:
            del layer._forward_hooks[key]
    return net
