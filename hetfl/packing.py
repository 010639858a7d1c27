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
    """Return the bytes of dictionaries with text as keys, lists, numbers, text, None and tensors.

    Raises:
        TypeError: there is something else in it.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().contiguous().clone()
            return {TENSOR: name}
        if isinstance(value, Mapping):
            # As pairs: a name of the user's own may be the word that marks a tensor.
            return {"items": [[str(key), plain(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    return safetensors.torch.save(tensors, {TREE: json.dumps(plain(tree), allow_nan=False)})


def unpack(data: bytes) -> Any:
    """Return what :func:`pack` was given; tuples are lists now.

    Raises:
        ValueError: the bytes are not its own.
    """
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        tree = parse_json(parse_json(data[8 : 8 + length])["__metadata__"][TREE])

        def whole(value: Any) -> Any:
            if isinstance(value, dict):
                return tensors[value[TENSOR]] if TENSOR in value else {key: whole(item) for key, item in value["items"]}
            return [whole(item) for item in value] if isinstance(value, list) else value

        return whole(tree)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"Expected packed values but got {len(data)} other bytes") from error
