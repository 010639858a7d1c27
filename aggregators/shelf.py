"""Updates that wait for the end of a round: in memory, and beyond a limit in files."""

from __future__ import annotations

import os
from dataclasses import replace
from tempfile import NamedTemporaryFile

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.updates import DenseUpdate, SparseUpdate, Update

Plain = DenseUpdate | SparseUpdate
"""Updates whose entries can be read in part."""


class Shelf:
    """Keeps the updates of a round.

    Args:
        most_bytes: bytes of updates in memory; the values of further updates are in files, which the system reads when
            they are needed, and which vanish with the process. None: no limit.

    Raises:
        ConfigurationError: ``most_bytes`` is negative.
    """

    def __init__(self, most_bytes: int | None) -> None:
        if most_bytes is not None and most_bytes < 0:
            raise ConfigurationError(f"Expected most_bytes of at least 0 or null but got {most_bytes}")
        self.most_bytes, self.used = most_bytes, 0
        self.folder: str | None = None

    def clear(self) -> None:
        """Begin a round."""
        self.used = 0

    def keep(self, update: Update) -> Plain:
        """Return an update with the same entries, whose values lie in memory or in a file."""
        plain = update if isinstance(update, Plain) else DenseUpdate(update.to_dense(), exact=update.exact)
        plain = replace(plain, codes=None, values=self._kept(plain.values))
        return replace(plain, indices=self._kept(plain.indices)) if isinstance(plain, SparseUpdate) else plain

    def _kept(self, tensor: Tensor) -> Tensor:
        if self.most_bytes is None or self.used + tensor.nbytes <= self.most_bytes or not tensor.numel():
            self.used += tensor.nbytes
            return tensor
        if self.folder is not None:
            os.makedirs(self.folder, exist_ok=True)
        with NamedTemporaryFile(dir=self.folder, prefix="waiting-") as file:
            tensor.detach().cpu().numpy().tofile(file)
            file.flush()
            # The mapping stays when the file's name is gone.
            return torch.from_file(file.name, shared=False, size=tensor.numel(), dtype=tensor.dtype)
