"""The seconds that an entry of the global model costs a client in a round, for criteria of pruning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from hetfl.fleet import Device
from hetfl.levels.level_set import LevelSet


def entry_seconds(levels: LevelSet, weights: Mapping[str, Tensor], samples: float, device: Device) -> dict[str, float]:
    r"""Return the seconds that an entry of each weight costs a client in a round.

    .. math:: t_l = \frac{F_l n}{\text{throughput} \cdot D_l} + \frac{4}{\text{downlink}} + \frac{4}{\text{uplink}}

    with :math:`F_l` the FLOPs of the layer of weight l per sample, forward and backward, n samples, and :math:`D_l` the
    entries of all weights of the layer.

    Args:
        levels: the levels, after :meth:`LevelSet.inspect`.
        weights: weights of the global model by name.
        samples: number of samples n that a client passes in a round, repetitions counted.
        device: its speeds.
    """
    shares = levels.layer_shares(levels.largest)
    flops = levels.flops[levels.largest][1] * samples / device.throughput
    travel = 4.0 / device.downlink + 4.0 / device.uplink
    layers, entries = {name: name.rpartition(".")[0] for name in weights}, Counter[str]()
    for name, weight in weights.items():
        entries[layers[name]] += weight.numel()
    return {name: flops * shares.get(of, 0.0) / entries[of] + travel for name, of in layers.items()}
