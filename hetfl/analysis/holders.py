"""The holders of the global model: per layer from the counts of snapshots, per entry by a replay of the cohorts."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from hetfl.entries import add_holders
from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.layout import Index
from hetfl.submodel import parameters_of


def mean_holders(layers: pd.DataFrame) -> pd.DataFrame:
    r"""Return the mean number of clients of each level that hold an entry of a tensor in a round.

    .. math:: \bar h_{l,t} = \frac{1}{R\,|\theta_t|} \sum_r \sum_{k \in S_r,\, \mathrm{level}(k) = l} |U_{k,t}|

    with :math:`U_{k,t}` the entries of tensor t that client k sends. A snapshot has the counts of one round without the
    clients' numbers, so a client that took part twice counts twice (:func:`holders` counts it once).

    Args:
        layers: the result of :meth:`hetfl.analysis.RunSnapshots.layers`: R rounds, L levels, T tensors.

    Returns:
        Numbers of clients, float64, shape (T, L): a row per tensor in the order of the net, a column per level in the
        order of the run.
    """
    held = layers.assign(per_entry=layers["held"] / layers["entries"] / layers["step"].nunique())
    table = held.pivot_table("per_entry", "tensor", "level", aggfunc="sum", sort=False)
    return table.loc[:, layers["level"].unique()]


def holders(module: FederatedModule, rounds: int) -> dict[str, Tensor]:
    r"""Return the number of distinct clients that ever held each entry of the trained tensors, by a replay of cohorts.

    .. math:: h_j = |\{k : \exists\, t < T,\ k \in S_t,\ j \in U_k(t)\}|

    with :math:`S_t` the cohort of round t and :math:`U_k(t)` the entries that client k sends at its level of that
    round. Cohorts and levels depend only on the seed of the module and the round, so the result is exact for any
    weights. An update that the server refused counts as held, because its client did train; a client that failed in a
    round, by its fleet, did not.

    Args:
        module: a module with data: one that was trained, validated or tested.
        rounds: number of rounds T to replay, from the first round.

    Returns:
        By name of a trained tensor, int64 counts of its shape.

    Raises:
        ConfigurationError: the module has no data yet, has several global models or a deadline, or its selection,
            assignment or part rule is not replayable.
    """
    counts = {name: torch.zeros(tensor.shape, dtype=torch.int64) for name, tensor in parameters_of(module.net).items()}
    for indices in _held_by_client(module, rounds).values():
        times: dict[str, Tensor] = {}
        for index in indices:
            for name in index.keys() & counts.keys():
                times.setdefault(name, torch.zeros_like(counts[name]))
            add_holders(times, index, 1)
        for name, often in times.items():
            counts[name] += often > 0
    return counts


def _held_by_client(module: FederatedModule, rounds: int) -> dict[int, list[Index]]:
    """Return per client the upload indices of its rounds."""
    if not module.parts.replayable:
        raise ConfigurationError(
            "Expected a part rule that can be replayed, because it depends only on seed and round, but got "
            f"{type(module.parts).__name__}: the part of every level is in the run's snapshots"
        )
    for kind, policy in (("a selection", module.selection), ("an assignment", module.assignment)):
        if not policy.replayable:
            raise ConfigurationError(
                f"Expected {kind} that can be replayed, because it depends only on seed and round, but got "
                f"{type(policy).__name__}"
            )
    if not module.selection.sizes:
        raise ConfigurationError(
            "Expected a module that has met its data (trainer.fit, validate or test) but got a new one"
        )
    if len(module.models) > 1:
        raise ConfigurationError(f"Expected one global model, to count its holders, but got {len(module.models)}")
    if module.ledger.deadline is not None:
        raise ConfigurationError(
            "Expected no deadline, to replay which clients trained, but got one of "
            f"{module.ledger.deadline:g} s: who misses it depends on the simulated time"
        )
    held: dict[int, list[Index]] = {}
    for round in range(rounds):
        for task in module.round.tasks(round, lr=0.0):
            if module.ledger.fleet.fails(task.client, round) is None:
                held.setdefault(task.client, []).append(task.sent)
    return held
