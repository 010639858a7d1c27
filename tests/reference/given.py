"""The inputs of the reference from the run under test: data, cohorts, levels, initial weights and random draws.

The reference uses nothing else of hetfl, and none of its numerics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import hetfl.part
from hetfl import wire
from hetfl.data import FederatedDataModule, TensorData
from hetfl.data.arrays import ClientData
from hetfl.fleet import CsvFleet, Fleet, LevelAssignment
from hetfl.local import LocalTraining
from hetfl.parts import PartRule
from hetfl.piece import Facts
from hetfl.seeding import generator
from hetfl.selection import Probe, Selection
from tests.reference.layers import Tensors
from tests.reference.rules import Client, Devices, Given, Part, Rules, Samples

NOBODY = 99
"""Owner id of the test samples that belong to no client."""


def made_data(
    sizes: Sequence[int],
    shape: tuple[int, ...] = (5,),
    classes: int = 3,
    labels: Callable[[int], Sequence[int]] | None = None,
    renamed: Callable[[int, NDArray[np.int64]], NDArray[np.int64]] = lambda client, y: y,
) -> FederatedDataModule:
    """Return float64 features, normally distributed around one point per class, for clients of given sizes.

    Args:
        sizes: samples of each client, before some are held out for validation.
        shape: shape of a sample.
        classes: number of classes.
        labels: classes of each client; None: all classes.
        renamed: each client's renaming of the classes.
    """
    random = np.random.default_rng(7)
    centres = random.normal(size=(classes, *shape))

    def drawn(client: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        client_classes = list(range(classes)) if labels is None else list(labels(client))
        y = np.array(client_classes)[np.arange(count) % len(client_classes)]
        x = 0.7 * centres[y] + random.normal(size=(count, *shape))
        return x, renamed(client, y)

    train = [drawn(client, size) for client, size in enumerate(sizes)]
    test = [drawn(client, 12 + size % 5) for client, size in enumerate(sizes)] + [drawn(0, 9)]
    owners = [*range(len(sizes)), NOBODY]
    return TensorData(
        train_inputs=torch.from_numpy(np.concatenate([x for x, _ in train])),
        train_targets=torch.from_numpy(np.concatenate([y for _, y in train])),
        test_inputs=torch.from_numpy(np.concatenate([x for x, _ in test])),
        test_targets=torch.from_numpy(np.concatenate([y for _, y in test])),
        train_clients=np.repeat(owners[:-1], sizes).tolist(),
        test_clients=np.repeat(owners, [len(y) for _, y in test]).tolist(),
        num_classes=classes,
    )


def made_fleet(folder: Path, clients: int, period: float = 1000.0, **columns: Sequence[float]) -> CsvFleet:
    """Return a fleet from a file; defaults are 2^20 FLOP/s, 2^14 and 2^12 bytes/s, and full availability."""
    rates = {"throughput": [2.0**20] * clients, "downlink": [2.0**14] * clients, "uplink": [2.0**12] * clients}
    cells: dict[str, Sequence[float]] = {"client": range(clients), **rates, **columns}
    lines = [",".join(cells), *(",".join(repr(column[k]) for column in cells.values()) for k in range(clients))]
    (folder / "fleet.csv").write_text("\n".join(lines) + "\n")
    return CsvFleet(str(folder / "fleet.csv"), period=period)


def initial(factory: Callable[..., nn.Module], *names: str | int, seed: int = 0) -> Tensors:
    """Return the initial values of a net, drawn with the generator of a purpose."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "net", *names).initial_seed())
        net = factory()
    state = {name: value for name, value in net.state_dict().items() if value.is_floating_point()}
    parameters = dict(net.named_parameters())
    order = [*parameters, *(name for name in state if name not in parameters)]
    return {name: state[name].detach().double().numpy().copy() for name in order}


class Draws:
    """The random draws of a run's seed about the rounds of its clients.

    Args:
        seed: seed of the run.
        sizes: number of training samples of each client.
        local: settings of local training.
        fleet: the fleet, after its setup.
    """

    def __init__(self, seed: int, sizes: Sequence[int], local: LocalTraining, fleet: Fleet) -> None:
        self.seed, self.sizes, self.local, self.fleet = seed, sizes, local, fleet

    def epochs(self, round: int, size: int) -> list[int]:
        random, each = generator(self.seed, "stragglers", round), [self.local.epochs] * size
        late = torch.randperm(size, generator=random).tolist()
        for place in late[: int(self.local.stragglers * size + 0.5)]:
            each[place] = int(torch.randint(1, self.local.epochs, (), generator=random))
        return each

    def order(self, round: int, client: int, epochs: int, purpose: str = "local") -> list[NDArray[np.int64]]:
        random, size = generator(self.seed, purpose, round, client), self.sizes[client]
        return [torch.randperm(size, generator=random).numpy() for _ in range(epochs)]

    def fails(self, round: int, client: int) -> float | None:
        random = generator(self.seed, "fleet", "failure", round, client)
        drawn, share = torch.rand(2, dtype=torch.float64, generator=random).tolist()
        return share if drawn < self.fleet.devices.failure_rate[client] else None

    def devices(self) -> Devices:
        drawn, random = self.fleet.devices, generator(self.seed, "fleet", "phase")
        phase = torch.rand(len(self.sizes), dtype=torch.float64, generator=random).numpy()
        rates = drawn.throughput, drawn.downlink, drawn.uplink
        return Devices(*rates, drawn.availability, drawn.first_round, drawn.last_round, phase, period=self.fleet.period)


def given(
    factory: Callable[..., nn.Module],
    data: FederatedDataModule,
    rules: Rules,
    fleet: Fleet,
    selection: Selection,
    assignment: LevelAssignment,
    local: LocalTraining,
    seed: int = 0,
    parts: PartRule | None = None,
) -> Given:
    """Return the inputs of a run with these objects, made from copies of them."""
    data.setup()
    clients = range(data.num_clients)
    selection, assignment, fleet = copy.deepcopy((selection, assignment, fleet))
    facts = Facts(data.sizes, seed, list(rules.nets))
    for piece in (selection, assignment, fleet):
        piece.setup(facts)
    draws, shapes = Draws(seed, data.sizes, local, fleet), rules.shapes[rules.largest]
    names: list[tuple[str | int, ...]] = [(), *((number,) for number in range(1, rules.clusters))]
    return Given(
        clients=[
            Client(_samples(data.client_data(k)), _samples(data.client_data(k, "test")), data.labels(k).numpy())
            for k in clients
        ],
        validation=_samples(data.resident.validation),
        nobodys=_nobodys(data),
        models=[initial(factory, *each, seed=seed) for each in names],
        devices=draws.devices(),
        cohort=lambda round, here: selection.select(round, cast(Probe, SimpleNamespace(clients=here))),
        level=assignment.level,
        epochs=draws.epochs,
        order=draws.order,
        statistics_order=lambda round, client: draws.order(round, client, 1, "statistics")[0],
        fails=draws.fails,
        draw=lambda cluster, round: initial(factory, cluster, "round", round, seed=seed),
        part=None if parts is None else lambda *names: _part(parts.part(*names), shapes),
        part_bytes=lambda *names: 0 if parts is None else _part_bytes(parts, *names),
    )


def _part(part: hetfl.part.Part, shapes: Mapping[str, tuple[int, ...]]) -> Part:
    """Return the positions and the global masks of a part."""
    where, masks = {}, {}
    for name, entry in part.items():
        where[name] = tuple(np.arange(d.start, d.stop) if isinstance(d, slice) else d.numpy() for d in entry)
        if part.mask_D is not None:
            masks[name] = np.zeros(shapes[name], dtype=bool)
            masks[name][np.ix_(*where[name])] = part.layout.views(part.mask_D)[name].numpy()
    return where, masks


def _part_bytes(parts: PartRule, level: str, round: int, client: int) -> int:
    """Return the length of an encoded part; :mod:`tests.test_wire_parts` tests the encoding itself."""
    blocks = parts.levels.indices
    return len(wire.encode_part(parts.part(level, round, client), blocks[level], blocks[parts.levels.largest]))


def _samples(data: ClientData) -> Samples:
    return Samples(data.inputs.numpy(), data.targets.numpy())


def _nobodys(data: FederatedDataModule) -> Samples:
    test, owned = data.resident.all_test, data.resident.test_owner >= 0
    return _samples(ClientData(test.inputs[~owned], test.targets[~owned]))
