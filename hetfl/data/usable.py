"""Detection of unusable samples: those with values that are missing, infinite, or too large for the default type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hetfl.data.arrays import Arrays, ClientData
from hetfl.data.transform import Transform
from hetfl.errors import ConfigurationError
from hetfl.tree import Tree, leaves, taken

FIRST = 64
"""Number of samples on which a transform is tested."""
DROP = "set drop_unusable: true to leave them out"


def usable(inputs: Tree) -> Tensor:
    """Return which samples have only finite values after conversion to ``torch.get_default_dtype()``: bool, shape (n,).

    Args:
        inputs: shape (n, ...), of any type, or a tree of such tensors.
    """
    return torch.stack([_usable(leaf) for leaf in leaves(inputs)]).all(0)


def _usable(inputs: Tensor) -> Tensor:
    flat_ND = inputs.flatten(1) if inputs.dim() > 1 else inputs.unsqueeze(1)
    if not inputs.is_floating_point() or not flat_ND.numel():
        return torch.ones(len(inputs), dtype=torch.bool)
    largest = torch.finfo(torch.get_default_dtype()).max
    smallest_N, greatest_N = flat_ND.aminmax(dim=1)  # NaN if any value is
    return (smallest_N.double() >= -largest) & (greatest_N.double() <= largest)


def usable_only(arrays: Arrays, drop: bool, cause: str = "") -> tuple[Arrays, int]:
    """Return a data set without unusable samples, and how many were left out.

    Args:
        arrays: the data set.
        drop: leave unusable samples out; otherwise they are an error.
        cause: what produced the values, for the message.

    Raises:
        ConfigurationError: a sample is unusable and ``drop`` is false, or no usable sample is left. The message has the
            positions and, if the data has client ids, the clients.
    """
    train, test = usable(arrays.train.inputs), usable(arrays.test.inputs)
    dropped = int((~train).sum() + (~test).sum())
    if not dropped:
        return arrays, 0
    for where, good, codes in (("training", train, arrays.train_clients), ("test", test, arrays.test_clients)):
        bad = (~good).nonzero().flatten().tolist()
        if bad and not drop:
            clients = "" if codes is None else f" of {of_clients([arrays.name_of(int(codes[i])) for i in bad])}"
            raise ConfigurationError(
                f"Expected finite {default_type()} values in all {where} inputs{cause} but got others in "
                f"{some('sample', bad)}{clients}: {DROP}"
            )
        if not good.any():
            raise ConfigurationError(
                f"Expected a {where} sample with finite values{cause} but all {len(good)} have others"
            )
    return replace(
        arrays,
        train=ClientData(taken(arrays.train.inputs, train), arrays.train.targets[train]),
        test=ClientData(taken(arrays.test.inputs, test), arrays.test.targets[test]),
        train_clients=None if arrays.train_clients is None else arrays.train_clients[train],
        test_clients=None if arrays.test_clients is None else arrays.test_clients[test],
    ), dropped


def check_transform(transform: Transform, inputs: Tree) -> None:
    """Refuse a transform that makes the first samples unusable; otherwise the error would appear later, in the net.

    Raises:
        ConfigurationError: the transformed samples are not finite.
    """
    if not usable(transform.eval(taken(inputs, slice(FIRST)))).all():
        raise ConfigurationError(f"Expected finite batches from {type(transform).__name__} but got other values")


def default_type() -> str:
    """Return the name of the type in which nets compute."""
    return str(torch.get_default_dtype()).removeprefix("torch.")


def some(noun: str, items: Sequence[object], most: int = 5) -> str:
    """Return a noun, the first items, and the number of further items.

    >>> some("row", [7]), some("row", [1, 2, 3, 4], most=2)
    ('row 7', 'rows 1, 2 and 2 more')
    """
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{noun}{'' if len(items) == 1 else 's'} {', '.join(str(item) for item in items[:most])}{more}"


def of_clients(names: Sequence[str | int]) -> str:
    """Return the distinct client names as text in one line.

    >>> of_clients(["ann", "bob", "ann"])
    "clients 'ann', 'bob'"
    """
    return some("client", [repr(name) for name in dict.fromkeys(names)])
