"""The settings of a run by their dotted names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def flat_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Return settings by their dotted names on the command line; values are JSON, texts are without quotes.

    >>> flat_settings({"model": {"class_path": "hetfl.FedAvg", "init_args": {"net": None, "sizes": [1, 2]}}})
    {'model': 'hetfl.FedAvg', 'model.net': 'null', 'model.sizes': '[1, 2]'}
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        _flatten(str(key), value, flat)
    return flat


def _flatten(name: str, value: Any, flat: dict[str, str]) -> None:
    if isinstance(value, Mapping) and "class_path" in value:
        flat[name] = str(value["class_path"])
        value = {key: inner for key, inner in value.items() if key not in ("class_path", "init_args")} | dict(
            value.get("init_args") or {}
        )
        if not value:
            return
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            _flatten(f"{name}.{key}", inner, flat)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for position, item in enumerate(value):
            _flatten(f"{name}[{position}]", item, flat)
    else:
        flat[name] = value if isinstance(value, str) else json.dumps(value, default=str)
