"""The server's step by any optimizer; entries without holders keep their values."""

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
    r"""Set :math:`\theta.\text{grad} = -\Delta`, step, and restore the entries without holders.

    The server's optimizer is that of Reddi et al., Adaptive Federated Optimization (ICLR 2021, arXiv 2003.00295).

    SGD(lr=1) adds the mean delta, as in FedAvg; Adam gives FedAdam. With momentum, weight decay or Adam, a zero
    gradient still moves a value. So entries without holders, and the optimizer's state for them, are restored bit for
    bit. Float buffers have no gradient: their delta is added directly, as is that of frozen parameters with holders.

    Args:
        optimizer: holds the global parameters and their state.
        step: performs the step (Lightning's wrapper of ``optimizer.step``, which counts it).
        tensors: the global parameters and float buffers.
        delta: the aggregated step of each tensor.
        holders: number or weight of the holders of each entry.
    """
    untouched: dict[nn.Parameter, tuple[Tensor, Tensor, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, nn.Parameter):
            tensor.add_(delta[name])
            continue
        if not tensor.requires_grad:
            if bool(holders[name].any()):  # a rule that changes frozen parameters
                with torch.no_grad():
                    tensor.add_(delta[name])
            continue
        unheld = holders[name] == 0
        if tensor.dim() == 0 and bool(unheld):
            tensor.grad = None  # the optimizer leaves it and its state as they are
            continue
        tensor.grad = delta[name].neg()
        if bool(unheld.any()):
            untouched[tensor] = (unheld, tensor.detach().clone(), _state(optimizer, tensor))
    step()
    with torch.no_grad():
        for parameter, (unheld, value, before) in untouched.items():
            parameter.copy_(torch.where(unheld, value, parameter))
            for key, state in _state(optimizer, parameter).items():
                # State begins at zero, except Rprop's step sizes, which the first step does not change.
                initial = state if key == "step_size" else torch.zeros_like(state)
                optimizer.state[parameter][key].copy_(torch.where(unheld, before.get(key, initial), state))
    optimizer.zero_grad(set_to_none=True)


def _state(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return copies of the optimizer's state tensors that have the parameter's shape."""
    state = optimizer.state.get(parameter, {})
    return {
        key: value.clone()
        for key, value in state.items()
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0
    }
