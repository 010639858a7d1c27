"""The server's step: any optimizer, and entries that nobody held keep their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def server_step(
    optimizer: Optimizer,
    step: Callable[[], object],
    tensors: Mapping[str, Tensor],
    delta: Mapping[str, Tensor],
    holders: Mapping[str, Tensor],
) -> None:
    r"""Set :math:`\theta.\text{grad} = -\Delta`, step, and keep what nobody held.

    The server's optimizer is that of Reddi et al., Adaptive Federated Optimization (ICLR 2021, arXiv 2003.00295).

    SGD(lr=1) adds the mean delta: FedAvg. Adam is FedAdam. Under momentum, weight decay or Adam a zero gradient still
    moves a value: entries without holders, and the optimizer's state of them, are put back bit for bit. Float buffers
    have no gradient: they take the delta as it is.

    Args:
        optimizer: holds the global parameters and their state.
        step: performs the step (Lightning's wrapper of ``optimizer.step``, which counts it).
        tensors: the global parameters and float buffers.
        delta: the aggregated step of each tensor.
        holders: number or weight of holders of each entry; 0: nobody.
    """
    untouched: dict[nn.Parameter, tuple[Tensor, Tensor, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, nn.Parameter):
            tensor.add_(delta[name])
            continue
        if not tensor.requires_grad:
            continue
        tensor.grad = delta[name].neg()
        unheld = holders[name] == 0
        if bool(unheld.any()):
            untouched[tensor] = (unheld, tensor.detach().clone(), _state(optimizer, tensor))
    step()
    with torch.no_grad():
        for parameter, (unheld, value, before) in untouched.items():
            parameter.copy_(torch.where(unheld, value, parameter))
            for key, state in _state(optimizer, parameter).items():
                # State begins at zero, but for Rprop's steps, which the first step leaves as they begin.
                initial = state if key == "step_size" else torch.zeros_like(state)
                optimizer.state[parameter][key].copy_(torch.where(unheld, before.get(key, initial), state))
    optimizer.zero_grad(set_to_none=True)


def _state(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return copies of the optimizer's state that has an entry per entry of the parameter."""
    state = optimizer.state.get(parameter, {})
    return {
        key: value.clone()
        for key, value in state.items()
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0
    }
