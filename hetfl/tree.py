"""Inputs of samples: a tensor, or tuples, lists and dicts of tensors whose first dimensions are the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError

Tree: TypeAlias = Any
"""A tensor, or a tuple, list or dict of trees. A net gets the whole tree as its one argument."""


def mapped(function: Callable[..., Tensor], tree: Tree, *others: Tree) -> Tree:
    """Return a tree of the same structure with a function's results as leaves.

    Args:
        function: takes a leaf of ``tree``, and the leaves of ``others`` at the same place.
        tree: defines the structure.
        others: trees of the same structure.

    Raises:
        ValueError: one of the others has a different structure.

    >>> mapped(torch.neg, {"a": torch.ones(1), "b": (torch.zeros(1),)})
    {'a': tensor([-1.]), 'b': (tensor([-0.]),)}
    """
    if isinstance(tree, dict):
        if not all(isinstance(other, dict) and other.keys() == tree.keys() for other in others):
            raise ValueError(f"expected dicts of {', '.join(map(str, tree))} but got others")
        return {key: mapped(function, value, *(other[key] for other in others)) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        if not all(isinstance(other, tuple | list) and len(other) == len(tree) for other in others):
            raise ValueError(f"expected {len(tree)} in each tuple or list but got others")
        values = [mapped(function, *each) for each in zip(tree, *others, strict=True)]
        return tree._make(values) if hasattr(tree, "_make") else type(tree)(values)
    return function(tree, *others)


def leaves(tree: Tree) -> list[Any]:
    """Return the leaves of a tree in its order; those of inputs are tensors.

    >>> leaves((1, {"b": 2, "a": [3]}))
    [1, 2, 3]
    """
    if isinstance(tree, dict | tuple | list):
        return [leaf for value in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(value)]
    return [tree]


def length(tree: Tree) -> int:
    """Return the number of samples: the first leaf's first dimension."""
    return len(leaves(tree)[0])


def taken(tree: Tree, rows: Tensor | slice | int) -> Tree:
    """Return the samples at positions; views for a slice."""
    return mapped(lambda leaf: leaf[rows], tree)


def divided(tree: Tree, sizes: Sequence[int]) -> list[Tree]:
    """Return consecutive views of the samples, with ``sizes`` samples each."""
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [taken(tree, slice(start, end)) for start, end in pairwise(ends)]


def stacked(trees: Sequence[Tree]) -> Tree:
    """Return trees of equal structure and shapes stacked along a new first dimension."""
    return mapped(lambda *parts: torch.stack(parts), *trees)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device. A copy to a GPU is asynchronous: the process does not wait for the GPU's work."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def moved(tree: Tree, device: torch.device) -> Tree:
    """Return a tree on a device; see :func:`on_device`."""
    return mapped(lambda leaf: on_device(leaf, device), tree)


def cast(tree: Tree, dtype: torch.dtype) -> Tree:
    """Return a tree with its floating-point leaves in a dtype; others, such as token ids and masks, are unchanged."""
    return mapped(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, tree)


def shapes(tree: Tree) -> tuple[tuple[int, ...], ...]:
    """Return the shape of every leaf."""
    return tuple(tuple(leaf.shape) for leaf in leaves(tree))


def in_words(tree: Tree) -> str:
    """Return a tree's types and shapes for messages.

    >>> in_words({"tokens": torch.zeros(4, 9, dtype=torch.int64), "mask": torch.zeros(4, 9, dtype=torch.bool)})
    '{tokens: int64 (4, 9), mask: bool (4, 9)}'
    """
    if isinstance(tree, dict):
        return f"{{{', '.join(f'{key}: {in_words(value)}' for key, value in tree.items())}}}"
    if isinstance(tree, tuple | list):
        return f"({', '.join(in_words(value) for value in tree)})"
    return f"{str(tree.dtype).removeprefix('torch.')} {tuple(tree.shape)}"


def single(tree: Tree, who: str) -> Tensor:
    """Return inputs that must be one tensor.

    Args:
        tree: the inputs.
        who: name of the object that needs one tensor, for the message.

    Raises:
        ConfigurationError: the inputs are a tuple, list or dict.
    """
    if not isinstance(tree, Tensor):
        raise ConfigurationError(f"Expected inputs of one tensor for {who} but got {in_words(tree)}")
    return tree
