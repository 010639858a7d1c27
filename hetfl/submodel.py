"""Indices of sub-models in the global model: functions that build them, and read, write and add through them.

An index entry has, per dimension, a ``slice(start, stop)`` (a view: no copy) or a sorted LongTensor of positions (a
gather).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.layout import IndexEntry, entry_shape


def parameters_of(net: nn.Module) -> dict[str, Tensor]:
    """Return the net's trained parameters by name, in the order of registration."""
    return {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}


def buffers_of(net: nn.Module) -> dict[str, Tensor]:
    """Return the net's persistent float buffers by name: statistics that are sent with the parameters."""
    persistent = net.state_dict(keep_vars=True).keys()
    return {
        name: buffer for name, buffer in net.named_buffers() if name in persistent and torch.is_floating_point(buffer)
    }


def frozen_of(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return the net's parameters that are not trained, by name."""
    return {name: parameter for name, parameter in net.named_parameters() if not parameter.requires_grad}


def state_of(net: nn.Module) -> dict[str, Tensor]:
    """Return a net's tensors by name: trained parameters, float buffers, then frozen parameters, which are not sent."""
    return {**parameters_of(net), **buffers_of(net), **frozen_of(net)}


def prefix_index(whole: Mapping[str, Tensor], part: Mapping[str, Tensor], level: str) -> dict[str, IndexEntry]:
    """Return the index of the leading block of every tensor, from the shapes of a sub-model (HeteroFL, section 3).

    Args:
        whole: the global model's tensors.
        part: the sub-model's tensors; global tensors that it lacks are not in the index.
        level: name of the sub-model's level, for messages.

    Raises:
        ConfigurationError: a tensor of the sub-model is unknown to the global model, has another number of
            dimensions, or is larger in one of them.
    """
    index: dict[str, IndexEntry] = {}
    for name, tensor in part.items():
        if name not in whole:
            raise ConfigurationError(
                f"Expected every tensor of the net at level {level} to be in the global model but got {name!r}, "
                "which is not"
            )
        if tensor.dim() != whole[name].dim() or any(
            s > g for s, g in zip(tensor.shape, whole[name].shape, strict=True)
        ):
            raise ConfigurationError(
                f"Expected tensor {name!r} at level {level} to be a leading block of the global "
                f"{tuple(whole[name].shape)} but got shape {tuple(tensor.shape)}"
            )
        index[name] = tuple(slice(0, size) for size in tensor.shape)
    return index


def extent(entry: IndexEntry) -> tuple[int, ...]:
    """Return the smallest shape whose leading block covers an entry."""
    return tuple(
        part.stop if isinstance(part, slice) else (int(part.max()) + 1 if part.numel() else 0) for part in entry
    )


def _narrowed(tensor: Tensor, entry: IndexEntry) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """Return the view by an entry's slices, and the dimensions and positions that must be gathered from it."""
    view, gathers = tensor, []
    for dim, part in enumerate(entry):
        if not isinstance(part, slice):
            # An index is on the CPU. The global model may be on another device; residuals are on the CPU.
            gathers.append((dim, part.to(tensor.device)))
        elif part.stop - part.start != tensor.shape[dim]:
            view = view.narrow(dim, part.start, part.stop - part.start)
    return view, gathers


def take(tensor: Tensor, entry: IndexEntry) -> Tensor:
    """Return ``tensor[entry]``, with positions combined as an open mesh; a view if the entry has only slices."""
    view, gathers = _narrowed(tensor, entry)
    for dim, positions in gathers:
        view = view.index_select(dim, positions)
    return view


def _mesh(view: Tensor, gathers: list[tuple[int, Tensor]]) -> tuple[Tensor, ...]:
    axes = [torch.arange(size, device=view.device) for size in view.shape]
    for dim, positions in gathers:
        axes[dim] = positions
    return torch.meshgrid(*axes, indexing="ij")


def put(tensor: Tensor, entry: IndexEntry, values: Tensor) -> None:
    """Write ``tensor[entry] = values`` in place."""
    view, gathers = _narrowed(tensor, entry)
    if not gathers:
        view.copy_(values)
    elif len(gathers) == 1:
        view.index_copy_(gathers[0][0], gathers[0][1], values)
    else:
        view.index_put_(_mesh(view, gathers), values)


def add(tensor: Tensor, entry: IndexEntry, values: Tensor | float, weight: float = 1.0) -> None:
    """Compute ``tensor[entry] += weight * values`` in place; the positions of an entry must be distinct."""
    view, gathers = _narrowed(tensor, entry)
    if not isinstance(values, Tensor):
        values = tensor.new_full((), values).expand(entry_shape(entry))
    if not gathers:
        view.add_(values, alpha=weight)
    elif len(gathers) == 1:
        view.index_add_(gathers[0][0], gathers[0][1], values, alpha=weight)
    else:
        view.index_put_(_mesh(view, gathers), values * weight, accumulate=True)


def relative(entry: IndexEntry, base: IndexEntry) -> IndexEntry:
    """Return the positions of ``entry`` inside ``base``, given both in global coordinates.

    Raises:
        ValueError: ``entry`` has positions outside ``base``.
    """
    return tuple(_relative(part, of) for part, of in zip(entry, base, strict=True))


def _relative(part: slice | Tensor, base: slice | Tensor) -> slice | Tensor:
    if isinstance(base, slice):
        if isinstance(part, slice):
            if part.start < base.start or part.stop > base.stop:
                raise ValueError(f"Expected positions inside {base} but got {part}")
            return slice(part.start - base.start, part.stop - base.start)
        if part.numel() and (int(part.min()) < base.start or int(part.max()) >= base.stop):
            raise ValueError(f"Expected positions inside {base} but got {part.tolist()}")
        shifted: Tensor = part - base.start
        return shifted
    wanted = torch.arange(part.start, part.stop, device=base.device) if isinstance(part, slice) else part
    where = torch.searchsorted(base, wanted)
    if not torch.equal(base[where.clamp(max=base.numel() - 1)], wanted):
        raise ValueError(f"Expected positions among {base.tolist()} but got {wanted.tolist()}")
    return where
