"""Plain values and tensors as bytes and back, without pickle: a safetensors file whose metadata is one JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from hetfl.reading import parse_json

TREE = "tree"
TENSOR = "tensor"


def pack(tree: Any) -> bytes:
    """Return as bytes a value of dictionaries with text as keys, lists, numbers, text, None and tensors.

    Raises:
        TypeError: the value contains an object of another type.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().contiguous().clone()
            return {TENSOR: name}
        if isinstance(value, Mapping):
            # As pairs, since a user's key may be the word that marks a tensor.
            return {"items": [[str(key), plain(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    return safetensors.torch.save(tensors, {TREE: json.dumps(plain(tree), allow_nan=False)})


def unpack(data: bytes) -> Any:
    """Return the value that :func:`pack` got, with lists in place of tuples.

    Raises:
        ValueError: :func:`pack` did not make these bytes.
    """
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        tree = parse_json(parse_json(data[8 : 8 + length])["__metadata__"][TREE])

        def restored(value: Any) -> Any:
            if isinstance(value, dict):
                if TENSOR in value:
                    return tensors[value[TENSOR]]
                return {key: restored(item) for key, item in value["items"]}
            return [restored(item) for item in value] if isinstance(value, list) else value

        return restored(tree)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"Expected packed values but got {len(data)} other bytes") from error
