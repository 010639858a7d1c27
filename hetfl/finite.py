"""Whether values are finite."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError


def is_finite(values: Tensor) -> bool:
    """Return whether no value is NaN or infinite."""
    # A sum is not finite if a value is not, and takes less time than to look at each.
    return math.isfinite(values.sum()) or bool(values.isfinite().all())


def require_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse named tensors with a value that is NaN or infinite.

    Args:
        tensors: the tensors by name, all on one device.
        what: what is finite, and where it is from, for the message.

    Raises:
        ConfigurationError: a value is NaN or infinite; the message has the name of the first such tensor.
    """
    if not tensors or math.isfinite(torch.stack([tensor.detach().sum().double() for tensor in tensors.values()]).sum()):
        return
    for name, tensor in tensors.items():
        if not is_finite(tensor.detach()):
            raise ConfigurationError(f"Expected finite {what} but got NaN or Inf in {name!r}")
