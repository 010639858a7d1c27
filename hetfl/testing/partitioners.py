"""The check of the contract of partitioners."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hetfl.data import Partitioner
from hetfl.errors import ConfigurationError
from hetfl.testing.rules import factory, random, require

CASES = [(1, 1, 1), (30, 1, 4), (60, 3, 6), (120, 4, 8), (300, 10, 20), (600, 10, 20), (200, 2, 40), (97, 5, 7)]
"""Numbers of samples, classes and clients of the test data sets."""


def check_partitioner(partitioner: Partitioner | Callable[[], Partitioner], leaves_out: bool = False) -> None:
    """Check that a partitioner follows its contract.

    - It returns int64 positions for every client. Every position occurs exactly once, or at most once with
      ``leaves_out``.
    - The result depends only on the labels and the generator. The labels and torch's global generator are not modified.
    - An impossible partition is refused by a ConfigurationError of one line.

    Args:
        partitioner: an object, or a function that makes new objects.
        leaves_out: whether the partitioner may leave some samples without a client.

    Raises:
        AssertionError: a rule is broken; the message names the rule.
    """
    make = factory(partitioner, Partitioner)
    name, shared = type(make()).__name__, 0
    for number, (samples, classes, clients) in enumerate(CASES):
        bound = clients if make().by_client_id else classes
        labels = torch.randint(bound, (samples,), generator=random(number))
        shared += _check_case(make, labels, clients, number, leaves_out)
    require(shared > 0, f"{name} to divide at least one of {len(CASES)} data sets", "a refusal of all")
    try:
        make()(torch.zeros(20, dtype=torch.int64), 21, random(0))
    except ConfigurationError:
        return
    raise AssertionError(f"Expected {name} to refuse 21 clients for 20 samples but got a partition")


def _check_case(make: Callable[[], Partitioner], labels: Tensor, clients: int, seed: int, leaves_out: bool) -> bool:
    name, before, state = type(make()).__name__, labels.clone(), torch.get_rng_state()
    where = f"from {name} for {len(labels)} samples and {clients} clients"
    try:
        parts = make()(labels, clients, random(seed))
    except ConfigurationError as error:
        return _refused(str(error), where)
    require(len(parts) == clients, f"{clients} parts {where}", len(parts))
    for part in parts:
        right = isinstance(part, Tensor) and part.dtype == torch.int64 and part.dim() == 1
        got = f"{part.dtype} {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
        require(right, f"positions as int64 of shape (n,) {where}", got)
    flat = torch.cat(list(parts)).tolist()
    twice = len(flat) - len(set(flat))
    require(not twice, f"every sample at most once {where}", f"{twice} more than once")
    require(
        set(flat) <= set(range(len(labels))), f"positions of samples {where}", f"others, up to {max(flat, default=0)}"
    )
    missing = len(labels) - len(flat)
    require(leaves_out or not missing, f"every sample at a client {where}", f"{missing} at none")
    require(torch.equal(labels, before), f"labels that are left as they are {where}", "changed ones")
    untouched = torch.equal(torch.get_rng_state(), state)
    again = make()(labels, clients, random(seed))
    alike = untouched and len(again) == clients and all(map(torch.equal, parts, again))
    require(alike, f"random choices only from the generator {where}", "others")
    return True


def _refused(message: str, where: str) -> bool:
    right = message.startswith("Expected ") and "\n" not in message
    require(right, f'a refusal of one line, "Expected ... but got ...", {where}', repr(message))
    return False
