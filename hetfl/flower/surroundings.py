"""What the bits of results depend on beside the settings: versions, threads, kernels."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version

import torch

import hetfl
from hetfl.printable import printable

MOST = 20
"""Largest number of entries of a node that are read."""


def surroundings(device: torch.device) -> dict[str, str]:
    """Return by name what this process computes with.

    Args:
        device: where it trains.
    """
    on_gpu = device.type == "cuda"
    return {
        "hetfl": hetfl.__version__,
        "torch": torch.__version__,
        "Flower": version("flwr"),
        "threads": str(torch.get_num_threads()),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
    }


def differences(one: Mapping[str, str], other: Mapping[str, str], names: tuple[str, str]) -> str:
    """Return in which entries two sides differ; empty text: in none. Entries that one side lacks are left out.

    >>> differences({"torch": "2.8", "threads": "1"}, {"torch": "2.9", "threads": "1"}, ("here", "on node two"))
    'torch 2.8 here, 2.9 on node two'

    Args:
        one: entries of the first side.
        other: entries of the second side.
        names: how the text calls the sides.
    """
    both = [name for name in one if name in other and one[name] != other[name]]
    return "; ".join(printable(f"{name} {one[name]} {names[0]}, {other[name]} {names[1]}") for name in both[:MOST])
