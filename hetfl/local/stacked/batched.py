"""One call of a net for several clients, each with its own weights, by the fastest correct implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.local.stacked.folding import FoldedNet
from hetfl.submodel import parameters_of, state_of
from hetfl.tree import Tree, cast, mapped, moved, stacked, taken


class BatchedNet(Protocol):
    """A net of S clients: outputs (S, ..., N, K) from tensors by name, each (S, ...), and inputs (S, N, ...).

    Inputs may be a tuple, list or dict of such tensors, as the net takes them.

    Attributes:
        layout: the memory layout of the tensors in a client's row.
    """

    layout: type[Layout]

    def fix(self, tensors: Mapping[str, Tensor]) -> None:
        """Set tensors that have the same values for all clients, by name; calls may leave them out."""
        ...

    def __call__(self, tensors: Mapping[str, Tensor], inputs_SN: Tree) -> Tensor:
        """Return the outputs."""
        ...


CLIENTS = 2
"""Number of clients in the comparison."""


class VmappedNet:
    """Any net by ``torch.func.vmap``, which batches each of its operations.

    Args:
        net: a client's net; it is put into training mode.
    """

    layout: type[Layout] = Layout

    def __init__(self, net: nn.Module) -> None:
        self.net = net.train()
        self._batched = vmap(self._one)
        self._parameters = dict(self.net.named_parameters())

    def fix(self, tensors: Mapping[str, Tensor]) -> None:
        """Set tensors that have the same values for all clients: they are not repeated."""
        for name, tensor in tensors.items():
            self._parameters[name].data = tensor

    def _one(self, tensors: dict[str, Tensor], inputs_N: Tree) -> Tensor:
        outputs: Tensor = functional_call(self.net, tensors, (inputs_N,))
        return outputs

    def __call__(self, tensors: Mapping[str, Tensor], inputs_SN: Tree) -> Tensor:
        """Return the outputs, shape (S, ..., N, K)."""
        outputs: Tensor = self._batched(dict(tensors), inputs_SN)
        return outputs


def batched(build: Callable[[], nn.Module], inputs_N: Tree, who: str) -> BatchedNet:
    """Return a net for several clients at once: by folding if that computes the same, otherwise by ``torch.func``.

    A net's ``forward`` may do anything between its layers (join channels, or compute across them). So the outputs and
    gradients of the folded net are compared with the single net's in float64, client by client, on a few samples. In
    any case ``torch.func`` must be able to batch the net: it refuses a net whose control flow depends on values, which
    a comparison could miss.

    Args:
        build: makes a client's net.
        inputs_N: a few samples, as inputs of the net.
        who: the name of the net in messages.

    Raises:
        ConfigurationError: the net draws random numbers, or changes buffers, or its operations cannot be batched.
    """
    net = build()
    refuse(net, who)
    with _exactly():
        exact = net.cpu().double().train()
        tensors = _drawn(exact)
        inputs_SN = stacked([inputs_N, mapped(lambda leaf: leaf.flip(0), inputs_N)])
        inputs_SN = cast(moved(inputs_SN, torch.device("cpu")), torch.float64)

        def computed(net: BatchedNet) -> list[Tensor]:
            laid_out = {name: _as(net.layout, tensor) for name, tensor in tensors.items()}
            return _computed(lambda given: net(given, inputs_SN), laid_out, exact)

        each = [
            _alone(exact, {n: t[s : s + 1] for n, t in tensors.items()}, taken(inputs_SN, s), who)
            for s in range(CLIENTS)
        ]
        expected = [torch.cat(parts) for parts in zip(*each, strict=True)]
        try:
            vmapped = computed(VmappedNet(exact))
        except Exception as error:  # torch.func and the net's code may raise anything
            first = str(error).splitlines()[0]
            raise ConfigurationError(
                f"Expected a net that torch.func.vmap can batch for executor Stacked but got {who}: {first}"
            ) from None
        if not _same(vmapped, expected):
            raise ConfigurationError(
                f"Expected a net that torch.func.vmap computes alike for executor Stacked but got {who}"
            )
        try:
            folds = _same(computed(FoldedNet(exact)), expected)
        except Exception:  # the net's code may raise anything at shapes that it does not expect
            folds = False
    return FoldedNet(build()) if folds else VmappedNet(build())


def refuse(net: nn.Module, who: str) -> None:
    """Refuse a net with dropout or running statistics, which a batched net cannot keep separate per client.

    Args:
        net: a client's net.
        who: the name of the net in messages.

    Raises:
        ConfigurationError: names the module.
    """
    for name, module in net.named_modules():
        culprit = f"{name!r}, a {type(module).__name__}, in {who}: use Sequential or Workers"
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise ConfigurationError(f"Expected a net without dropout for executor Stacked but got {culprit}")
        if getattr(module, "track_running_stats", False) and isinstance(module, nn.modules.batchnorm._NormBase):
            raise ConfigurationError(
                f"Expected a net without running statistics for executor Stacked but got {culprit}"
            )


@contextmanager
def _exactly() -> Iterator[None]:
    """Compute in float64, whatever the trainer's precision."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_default_dtype(default)


def _drawn(net: nn.Module) -> dict[str, Tensor]:
    """Return by name the tensors of some clients, moved away from initial ones and zeros, which hide differences."""
    random = torch.Generator().manual_seed(0)

    def drawn(tensor: Tensor) -> Tensor:
        noise = torch.rand(CLIENTS, *tensor.shape, generator=random)
        return tensor.detach() * (0.5 + noise) + 0.05 * (noise - 0.5)

    buffers = {name for name, _ in net.named_buffers()}
    return {
        name: tensor.expand(CLIENTS, *tensor.shape) if name in buffers else drawn(tensor)
        for name, tensor in state_of(net).items()
    }


def _as(layout: type[Layout], tensor_S: Tensor) -> Tensor:
    """Return clients' tensors in the memory layout of rows."""
    shape = tensor_S.shape[1:]
    return layout.shaped(layout.flat(tensor_S, shape).contiguous(), shape)


def _computed(
    call: Callable[[dict[str, Tensor]], Tensor], tensors: Mapping[str, Tensor], net: nn.Module
) -> list[Tensor]:
    """Return outputs (S, ...), and the gradients of a weighted sum of them for every trained parameter."""
    trained = parameters_of(net).keys()
    given = {name: tensor.detach().clone().requires_grad_(name in trained) for name, tensor in tensors.items()}
    outputs_SN = call(given)
    weights_N = torch.randn(outputs_SN.shape[1:], generator=torch.Generator().manual_seed(0))
    leaves = [given[name] for name in trained]
    grads = torch.autograd.grad((outputs_SN * weights_N).sum(), leaves, allow_unused=True, materialize_grads=True)
    return [outputs_SN.detach(), *grads]


def _alone(net: nn.Module, tensors: Mapping[str, Tensor], inputs_N: Tree, who: str) -> list[Tensor]:
    """Return the result of :func:`_computed` for a single client.

    Raises:
        ConfigurationError: the call changes a buffer, or draws random numbers.
    """
    used = {name: buffer.clone() for name, buffer in net.named_buffers()}

    def call(given: dict[str, Tensor]) -> Tensor:
        used.update({name: tensor[0] for name, tensor in given.items()})
        outputs: Tensor = functional_call(net, used, (inputs_N,))
        return outputs.unsqueeze(0)

    state = torch.get_rng_state()
    computed = _computed(call, tensors, net)
    for name, buffer in net.named_buffers():
        before = tensors[name][0] if name in tensors else buffer
        if not torch.equal(used[name].nan_to_num(), before.nan_to_num()):
            raise ConfigurationError(
                f"Expected a net whose training changes no buffer for executor Stacked but got {name!r} in {who}: "
                "use Sequential or Workers"
            )
    if not torch.equal(torch.get_rng_state(), state):
        raise ConfigurationError(
            f"Expected a net that draws no random numbers for executor Stacked but got {who}: use Sequential or Workers"
        )
    return computed


def _same(computed: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Return whether tensors agree up to rounding, relative to each tensor's largest entry."""
    return all(
        one.shape == two.shape and bool((one - two).abs().max() <= 1e-10 + 1e-8 * two.abs().max())
        for one, two in zip(computed, expected, strict=True)
    )
