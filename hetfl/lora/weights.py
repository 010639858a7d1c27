"""The weights of a base, read from a safetensors file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.models.static_batch_norm import static_layers


def load_weights(net: nn.Module, path: str, whole: bool = True) -> None:
    """Load a net's state from a safetensors file; a narrower net gets the leading block of every tensor.

    Every tensor of the net must be in the file.

    Args:
        net: the net.
        path: the file.
        whole: whether the file must have no other tensors, but the statistics of static batch norm, which
            ``hetfl export`` adds; a net of another depth than the file's has fewer.

    Raises:
        ConfigurationError: the file cannot be read, or names or shapes differ.
    """
    tensors, state = _read(path, _mark(path)), net.state_dict()
    statistics = {f"{name}.{kind}" for name in static_layers(net) for kind in ("mean", "var")}
    for name in [*state, *(tensors if whole else ())]:
        if name not in tensors or (name not in state and name not in statistics):
            where, other = ("the file", "the net") if name in tensors else ("the net", "the file")
            raise ConfigurationError(
                f"Expected weights of the net in {path} but got {name!r} in {where}, not in {other}"
            )
    for name, target in state.items():
        given = tensors[name]
        if given.dim() != target.dim() or any(t > g for t, g in zip(target.shape, given.shape, strict=True)):
            raise ConfigurationError(
                f"Expected {name!r} of shape {tuple(target.shape)} or larger in {path} but got {tuple(given.shape)}"
            )
        if not target.is_meta:
            with torch.no_grad():
                target.copy_(given[tuple(slice(0, size) for size in target.shape)])


def _mark(path: str) -> tuple[int, int]:
    """Return the size of a file and the time of its last change."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise ConfigurationError(f"Expected a safetensors file of weights but got {path}: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=1)
def _read(path: str, mark: tuple[int, int]) -> dict[str, Tensor]:
    """Return the tensors of a file; the nets of all levels are made of one reading."""
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ConfigurationError(f"Expected a safetensors file of weights in {path} but got: {error}") from None
