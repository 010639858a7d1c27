"""What a checkpoint holds: its size, compared with that of its file, and the types of a federation's state.

A few bytes of an archive can stand for a large tensor: records may be compressed or lie over each other, a tensor may
repeat one value, and lists may hold each other many times.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.reading import TooMuch

MOST_TIMES = 16
"""How many times a file's bytes its content may have, written out: tensors may share memory, and lists be shared."""
HOLDERS = (dict, list, tuple, set, frozenset)
SMALL = 1 << 16
"""Bytes of content that any file may have."""


def check_records(path: Path) -> None:
    """Refuse an archive whose records are longer than the bytes that it has for them.

    Raises:
        TooMuch: a record is compressed, or records lie over each other.
        zipfile.BadZipFile: it is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise TooMuch("records that are not compressed", "compressed ones")
    size = path.stat().st_size
    if (total := sum(record.file_size for record in records)) > size:
        raise TooMuch(f"records of at most {size:,} bytes", f"{total:,}")


def check_content(content: Any, size: int) -> None:
    """Refuse values that take much more memory, written out, than their file has bytes.

    A value counts as often as it is held, a tensor by the bytes of its entries, anything else as one byte.

    Args:
        content: plain values and tensors in dictionaries, lists, tuples and sets.
        size: bytes of the file.

    Raises:
        TooMuch: they do, or a tensor has more memory than the file has bytes.
    """
    most, total = MOST_TIMES * size + SMALL, 0
    storages: dict[int, int] = {}
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, HOLDERS):
            total += len(value)
            values = value.values() if isinstance(value, dict) else value
            waiting += [each for each in values if isinstance(each, (*HOLDERS, Tensor))]
        elif isinstance(value, Tensor) and value.layout == torch.strided:
            total += value.numel() * value.element_size()
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        if total > most:
            raise TooMuch(f"content of at most {most:,} bytes, written out,")
    if (stored := sum(storages.values())) > size:
        raise TooMuch(f"tensors of at most {size:,} bytes", f"{stored:,}")


def check_state(state: Any) -> None:
    """Refuse a federation's state with values of other types than hetfl writes; entries may be missing.

    Args:
        state: of a checkpoint.

    Raises:
        ConfigurationError: names the entry.
    """
    if not isinstance(state, dict):
        raise ConfigurationError(f"Expected a federation's state in the checkpoint but got {state!r:.60}")
    for name, (what, fits) in _STATE.items():
        if name in state and not fits(state[name]):
            raise ConfigurationError(f"Expected {what} as {name} in the checkpoint but got {state[name]!r:.60}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_rates(value: Any) -> bool:
    rates = [value.get(name) for name in ("server", "clients")] if isinstance(value, dict) else [None]
    return all(isinstance(rate, (int, float)) and math.isfinite(rate) for rate in rates)


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)


def _are_states(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(state, dict) for state in value.values())


_STATE: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "version": ("a number of rounds", _is_count),
    "models": ("a number of global models", _is_count),
    "shared": ("a list of patterns", lambda value: isinstance(value, list)),
    "fingerprint": ("texts by name", _are_texts),
    "learning_rates": ("the rates of server and clients", _are_rates),
    "pieces": ("states by name", _are_states),
}
"""By entry of a federation's state, what it is, and whether a value is such."""
