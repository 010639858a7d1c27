"""Who holds what of the global model: per layer from snapshots' counts, per entry by replaying who took part."""

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
    r"""Return how many clients of each level held an entry of a tensor in a round, on average.

    .. math:: \bar h_{l,t} = \frac{1}{R\,|\theta_t|} \sum_r \sum_{k \in S_r,\, \mathrm{level}(k) = l} |U_{k,t}|

    with :math:`U_{k,t}` the entries of tensor t that client k sends. The counts of a snapshot are of its
    own round alone and do not say which clients they were: a client that took part twice counts twice
    (:func:`holders` counts clients once).

    Args:
        layers: what :meth:`hetfl.analysis.RunSnapshots.layers` returns: R rounds, L levels, T tensors.

    Returns:
        Clients, float64: a row per tensor in the net's order, a column per level in the run's order (T, L).
    """
    held = layers.assign(per_entry=layers["held"] / layers["entries"] / layers["step"].nunique())
    table = held.pivot_table("per_entry", "tensor", "level", aggfunc="sum", sort=False)
    return table.loc[:, layers["level"].unique()]


def holders(module: FederatedModule, rounds: int) -> dict[str, Tensor]:
    r"""Return how many distinct clients ever held each entry of the trained tensors, by replaying who took part.

    .. math:: h_j = |\{k : \exists\, t < T,\ k \in S_t,\ j \in U_k(t)\}|

    with :math:`S_t` the cohort of round t and :math:`U_k(t)` what client k sends at its level of that round.
    Cohorts and levels are functions of the module's seed and the round, so this is exact, whatever the weights; an
    update that the server refused counts as held, as its client did train.

    Args:
        module: a module that has met its data: one that was trained, validated or tested.
        rounds: number of rounds T to replay, from the first.

    Returns:
        Per name of a trained tensor, int64 of its shape.

    Raises:
        ConfigurationError: the module has no data yet, or its selection is not replayable.
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
    """Return per client the upload indices of the rounds that it took part in."""
    if not module.selection.replayable:
        raise ConfigurationError(
            "Expected a selection that depends on seed and round alone, which can be replayed, but got "
            f"{type(module.selection).__name__}, which does not"
        )
    if not module.selection.sizes:
        raise ConfigurationError(
            "Expected a module that has met its data (trainer.fit, validate or test) but got a new one"
        )
    held: dict[int, list[Index]] = {}
    for round in range(rounds):
        for task in module.round.tasks(round, lr=0.0):
            held.setdefault(task.client, []).append(task.sent)
    return held
