"""Nets of several clients in one call: the clients folded into the channels.

Inputs of S clients, (S, N, C, ...), become (N, S·C, ...), client after client along dimension 1. A convolution becomes
a grouped convolution with one group per client, and a linear layer a batched matrix product. Layers that treat each
channel separately (normalisation by batch statistics, activations, pools) do not change. The net's own ``forward``
runs, on replaced layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl.layout import Layout
from hetfl.local.channels_last import ChannelsLastLayout, channels_last
from hetfl.local.stacked.rewriting import rewrite
from hetfl.models.static_batch_norm import StaticBatchNorm2d


class Folded(nn.Module):
    """A layer of S clients at once; its tensors are set before every call.

    Attributes:
        weight: shape (S, ...); None if the layer has none.
        bias: shape (S, ...); None if the layer has none.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None

    def vectors(self) -> tuple[Tensor | None, Tensor | None]:
        """Return weight and bias with the clients folded into the first dimension."""
        return _folded(self.weight), _folded(self.bias)


def _folded(tensor_S: Tensor | None) -> Tensor | None:
    if tensor_S is None:
        return None
    # flatten() over a dimension of size 1 gives an arbitrary stride, and torch's convolutions then refuse a gradient.
    return tensor_S[0] if len(tensor_S) == 1 else tensor_S.flatten(0, 1)


class FoldedConv2d(Folded):
    """Convolutions of S clients as one convolution with S times the groups.

    Args:
        layer: a client's convolution.

    Raises:
        TypeError: the convolution does not pad with zeros.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        if layer.padding_mode != "zeros":
            raise TypeError(f"Expected padding by zeros but got {layer.padding_mode}")
        self.stride, self.padding, self.dilation, self.groups = (
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the convolved activations, shape (N, S·C, H, W)."""
        assert self.weight is not None
        weight, bias = self.vectors()
        groups = len(self.weight) * self.groups
        return F.conv2d(x_NCHW, weight, bias, self.stride, self.padding, self.dilation, groups)  # type: ignore[arg-type]


class FoldedLinear(Folded):
    """Linear layers of S clients as one batched matrix product.

    Args:
        layer: a client's layer.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()

    def forward(self, x_NC: Tensor) -> Tensor:
        """Return the products, shape (N, S·K), of inputs (N, S·C)."""
        assert self.weight is not None
        x_SNC, weight_SCK = x_NC.unflatten(1, (len(self.weight), -1)).transpose(0, 1), self.weight.transpose(1, 2)
        if self.bias is None:
            out_SNK = torch.bmm(x_SNC, weight_SCK)
        else:
            out_SNK = torch.baddbmm(self.bias.unsqueeze(1), x_SNC, weight_SCK)
        return out_SNK.transpose(0, 1).flatten(1)


class FoldedStaticBatchNorm2d(Folded):
    """Static batch norm in training: each channel is normalised by its batch, so clients stay independent.

    Args:
        layer: a client's layer.
    """

    def __init__(self, layer: StaticBatchNorm2d) -> None:
        super().__init__()
        self.eps = layer.eps

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the normalised activations, shape (N, S·C, H, W)."""
        return F.batch_norm(x_NCHW, None, None, *self.vectors(), training=True, eps=self.eps)


class FoldedGroupNorm(Folded):
    """Group norm of S clients: S times the groups.

    Args:
        layer: a client's layer.

    Raises:
        TypeError: the layer has no weights, whose first dimension is the number of clients.
    """

    def __init__(self, layer: nn.GroupNorm) -> None:
        super().__init__()
        if not layer.affine:
            raise TypeError("Expected a group norm with weights but got none")
        self.eps, self.num_groups = layer.eps, layer.num_groups

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the normalised activations, shape (N, S·C, H, W)."""
        assert self.weight is not None
        return F.group_norm(x_NCHW, len(self.weight) * self.num_groups, *self.vectors(), eps=self.eps)


FOLDS: dict[type[nn.Module], Callable[..., Folded]] = {
    nn.Conv2d: FoldedConv2d,
    nn.Linear: FoldedLinear,
    StaticBatchNorm2d: FoldedStaticBatchNorm2d,
    nn.GroupNorm: FoldedGroupNorm,
}
"""Layers with parameters that can be folded, by exact type: a subclass may compute something else."""


class FoldedNet:
    """A net whose layers are replaced by layers of several clients.

    Args:
        net: a client's net; it is copied.

    Raises:
        TypeError: a layer with parameters cannot be folded.
    """

    layout: type[Layout] = ChannelsLastLayout

    def __init__(self, net: nn.Module) -> None:
        self.net = copy.deepcopy(net).train()
        rewrite(self.net)
        self._layers: list[tuple[Folded, str, str]] = []
        self._fixed: dict[str, Tensor] = {}
        for name, layer in list(self.net.named_modules(remove_duplicate=False)):
            fold = FOLDS.get(type(layer))
            if fold is None:
                if next(layer.parameters(recurse=False), None) is not None:
                    raise TypeError(f"Expected layers of {[kind.__name__ for kind in FOLDS]} but got {name!r}")
                continue
            folded = fold(layer)
            for leaf, _ in layer.named_parameters(recurse=False):
                self._layers.append((folded, leaf, f"{name}.{leaf}" if name else leaf))
            self._exchange(name, folded)

    def _exchange(self, name: str, layer: nn.Module) -> None:
        if not name:
            self.net = layer
            return
        owner, _, leaf = name.rpartition(".")
        self.net.get_submodule(owner)._modules[leaf] = layer

    def fix(self, tensors: Mapping[str, Tensor]) -> None:
        """Set tensors that have the same values for all clients; a call repeats them."""
        lay = self.layout
        self._fixed = {
            name: lay.shaped(lay.flat(tensor, tensor.shape).contiguous(), tensor.shape)
            for name, tensor in tensors.items()
        }

    def __call__(self, tensors: Mapping[str, Tensor], inputs_SN: Tensor) -> Tensor:
        """Return the outputs, shape (S, ..., N, K).

        Args:
            tensors: by name, each of shape (S, ...).
            inputs_SN: shape (S, N, C, ...).
        """
        for layer, leaf, name in self._layers:
            one = self._fixed.get(name) if name not in tensors else None
            setattr(layer, leaf, tensors[name] if one is None else one.expand(len(inputs_SN), *one.shape))
        x_NC = inputs_SN.transpose(0, 1).flatten(1, 2)
        if x_NC.dim() == 4:
            x_NC = channels_last(x_NC)
        outputs: Tensor = self.net(x_NC)
        clients_first: Tensor = outputs.unflatten(-1, (len(inputs_SN), -1)).movedim(-2, 0)
        return clients_first
