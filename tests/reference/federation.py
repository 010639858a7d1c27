"""The reference federation: whole rounds in the order of the papers, one client after the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.reference.client import (
    Chosen,
    Masks,
    Positions,
    chosen,
    dense_bytes,
    flat,
    loss_of,
    message_bytes,
    model_bytes,
    owned,
    parameters,
    positions,
    train,
    write,
)
from tests.reference.clusters import Clusters
from tests.reference.layers import Tensors
from tests.reference.ledger import Ledger
from tests.reference.nets import ramp
from tests.reference.rules import Given, Part, Rules, is_buffer
from tests.reference.server import Arrived, Optimizer, mean

ALL = -1
"""Key, in place of a cluster, of the tensors that all clusters share."""


def middle(pairs: list[tuple[float, int]]) -> float:
    """Return the lower median of values, weighted by their lengths."""
    below = 0
    for value, length in sorted(pairs):
        below += length
        if below >= sum(length for _, length in pairs) / 2:
            return value
    raise ValueError("Expected a value")


class Federation:
    """Runs rounds.

    Attributes:
        models: tensors by cluster; shared tensors are the same arrays in all clusters.
        residuals: unsent values by client, in global coordinates.
        memories: FedDyn's memories by client.
        last: by client, the last round in which the server accepted its update.
        threshold: least magnitude of a sent entry; None if there is none yet.
        least: for each accepted update of the calibration: the least magnitude in it, the factor by which the threshold
            must grow so that accumulating residuals keep the density, and the update's length.
        taken: epochs of the accepted updates, by round and client.
        version: number of changes of the models.
        told: the part whose positions a client received last, by client.
    """

    def __init__(self, rules: Rules, given: Given) -> None:
        self.rules, self.given = rules, given
        self.ledger = Ledger(given.devices, rules.deadline)
        self.models = [{name: value.copy() for name, value in model.items()} for model in given.models]
        for model in self.models[1:]:
            model.update({name: self.models[0][name] for name in rules.shared})
        shape = given.clients[0].train.x.shape[1:]
        largest = self.models[0]
        parts = {level: _slice(largest, positions(rules, level)) for level in rules.nets}
        self.flops = {level: net.flops(parts[level], shape) for level, net in rules.nets.items()}
        self.clusters = Clusters(rules, len(given.clients))
        everyone = range(len(given.clients))
        self.residuals = {k: {name: np.zeros_like(value) for name, value in largest.items()} for k in everyone}
        self.memories = {k: {name: np.zeros_like(value) for name, value in largest.items()} for k in everyone}
        self.last: dict[int, int] = {}
        self.taken: dict[tuple[int, int], int] = {}
        self.threshold: float | None = None
        self.least: list[tuple[float, float, int]] = []
        self.version = 0
        self.told: dict[int, str] = {}
        self.optimizers: dict[tuple[int, str], Optimizer] = {}

    def lr(self, t: int) -> float:
        return self.rules.lr * self.rules.gamma**t

    def ramp(self, t: int) -> float:
        return ramp(t, self.rules.ramp_rounds) if self.rules.ramp_rounds else 0.0

    def held(self, level: str, t: int, client: int) -> Part:
        """Return the positions and masks of what a client holds."""
        return self.given.part(level, t, client) if self.given.part else (positions(self.rules, level), {})

    def part(self, client: int, t: int, cluster: int) -> Tensors:
        """Return the sub-model of a cluster's model that a client downloads."""
        return _slice(self.models[cluster], *self.held(self.given.level(client, t), t, client))

    def down(self, level: str, t: int, client: int) -> int:
        """Return the download bytes of a client's sub-model and of its positions in the global model."""
        where, masks = self.held(level, t, client)
        return model_bytes(len(flat(self.models[0], where, list(where), masks))) + self.tell(level, t, client, client)

    def tell(self, level: str, t: int, whose: int, client: int) -> int:
        """Return the download bytes of a part's positions; 0 if the client received the same positions last."""
        where, masks = self.held(level, t, whose)
        key = repr([(name, [d.tolist() for d in where[name]], masks.get(name, 1)) for name in where])
        size = self.given.part_bytes(level, t, whose)
        if not size or self.told.get(client) == key:
            return 0
        self.told[client] = key
        return size

    def covered(self, level: str, t: int, client: int) -> dict[str, NDArray[np.bool_]]:
        """Return which entries of the global tensors a client holds."""
        where, masks = self.held(level, t, client)
        held_entries = {}
        for name, parts in where.items():
            held = np.zeros(self.models[0][name].shape, dtype=bool)
            held[np.ix_(*parts)] = True
            held_entries[name] = held & masks.get(name, np.bool_(True))
        return held_entries

    def loss(self, client: int, t: int, cluster: int) -> float:
        net = self.rules.nets[self.given.level(client, t)]
        return loss_of(net, self.rules, self.given.clients[client], self.part(client, t, cluster), self.ramp(t))

    def round(self, t: int) -> dict[str, float]:
        """Run a round up to the server's step; return its logged values except the ledger's columns."""
        rules, ledger = self.rules, self.ledger
        ledger.begin_round()
        here = ledger.wait(t)
        ledger.row["reachable"] = len(here)
        cohort = self.given.cohort(t, here)
        if rules.clusters > 1:
            self.ask(cohort, t, list(range(rules.clusters)))
            self.clusters.choose(t, cohort, {k: self.losses(k, t) for k in cohort})
        elif rules.q is not None:
            self.ask(cohort, t, [0])
        ledger.begin_phase("training")
        outcomes = [self.client(k, e, t) for k, e in zip(cohort, self.given.epochs(t, len(cohort)), strict=True)]
        arrived = [outcome for outcome in outcomes if outcome is not None]
        self.step(arrived, t)
        columns = {"lr": self.lr(t), **({} if self.threshold is None else {"threshold": self.threshold})}
        self.calibrate()
        if arrived:
            samples = sum(update.samples for update in arrived)
            columns["train_loss"] = sum(update.loss * update.samples for update in arrived) / samples
        if rules.clusters > 1:
            for cluster in self.clusters.renewed(cohort):
                drawn, self.version = self.given.draw(cluster, t), self.version + 1
                for name in drawn.keys() - rules.shared:
                    self.models[cluster][name] = drawn[name].copy()
                    self.optimizers.pop((cluster, name), None)
            columns |= self.clusters.columns(cohort)
        return columns

    def losses(self, client: int, t: int) -> list[float]:
        return [self.loss(client, t, cluster) for cluster in range(self.rules.clusters)]

    def ask(self, clients: list[int], t: int, clusters: list[int]) -> None:
        """Charge the clients' trial of cluster models: shared tensors come down once, and one number goes up."""
        self.ledger.begin_phase("probes")
        for client in clients:
            level = self.given.level(client, t)
            for number in range(len(clusters)):
                known = self.rules.shared if number else frozenset()
                size = self.rules.entries(level, without=known)
                flops = self.flops[level][0] * len(self.given.clients[client].train)
                self.ledger.spend(client, model_bytes(size), flops, 0 if number else dense_bytes(1))

    def client(self, client: int, epochs: int, t: int) -> Arrived | None:
        """Let a client train and send; return its update if the server accepts it."""
        rules, data, cluster = self.rules, self.given.clients[client], self.clusters.of(client)
        level, informed = self.given.level(client, t), rules.clusters > 1 or rules.q is not None
        down = 0 if informed else self.down(level, t, client)
        flops = self.flops[level][1] * len(data.train) * epochs
        share = self.given.fails(t, client)
        if share is not None:
            assert rules.deadline is None
            self.ledger.spend(client, down, flops * share, 0)
            self.ledger.count(failed=1, lost=1)
            return None
        initial_loss = self.loss(client, t, cluster) if rules.q is not None else 0.0
        whole, loss = self.trained(client, epochs, t)
        inner, masks = self.held(level, t, client)
        where = owned(rules, inner, data.owned)
        names, buffers = parameters(where), [name for name in where if is_buffer(name)]
        delta = flat(whole, where, names, masks)
        vector = delta + self.age(client, t) * flat(self.residuals[client], where, names, masks)
        if not np.isfinite(vector).all():
            self.ledger.spend(client, down, flops, 0)
            self.ledger.count(refused=1)
            return None
        sent = chosen(rules.density, self.threshold, vector)
        exact = flat(whole, where, buffers, masks)
        up = message_bytes(len(vector), sent, len(exact))
        if not self.ledger.in_time(client, down, flops, up):
            self.ledger.drop(client, down, flops, up)
            return None
        self.ledger.spend(client, down, flops, up)
        self.taken[t, client] = epochs
        least = float(np.abs(vector if sent is None else vector[sent]).min(initial=np.inf))
        if rules.calibrated and self.threshold is None and sent is not None:
            pile = max(1.0, 0.3 * np.abs(delta).sum() / (least * len(sent))) ** 0.5
            self.least.append((least, pile, len(vector)))
        held, travelled = len(vector), len(vector) if sent is None else len(sent)
        self.ledger.count(entries=held, sent=travelled, dense=4 * (held + len(exact)))
        decoded = self.keep(client, t, where, masks, vector, sent)
        for name in buffers:
            decoded[name] = whole[name]
        return Arrived(client, cluster, decoded, where, masks, len(data.train), loss, initial_loss)

    def calibrate(self) -> None:
        """Set the threshold at the end of the first round with accepted updates."""
        if self.rules.calibrated and self.threshold is None and self.least:
            magnitude, pile = (middle([(each[n], each[2]) for each in self.least]) for n in (0, 1))
            self.threshold = magnitude * pile
        self.least = []

    def trained(self, client: int, epochs: int, t: int) -> tuple[Tensors, float]:
        """Return the change of a client's sub-model by training, in global coordinates, and its mean loss."""
        level, data = self.given.level(client, t), self.given.clients[client]
        inner, masks = self.held(level, t, client)
        memory = _slice(self.memories[client], {name: inner[name] for name in parameters(inner)})
        orders = self.given.order(t, client, epochs)
        anchor, net = self.part(client, t, self.clusters.of(client)), self.rules.nets[level]
        mine = {name: mask[np.ix_(*inner[name])] for name, mask in masks.items()}
        delta, loss = train(net, self.rules, data, anchor, memory, mine, orders, self.lr(t), self.ramp(t))
        whole = {name: np.zeros_like(value) for name, value in self.models[0].items()}
        for name, value in delta.items():
            whole[name][np.ix_(*inner[name])] = value
        return whole, loss

    def age(self, client: int, t: int) -> float:
        """Return the factor of a client's residual; 0 once it is too old."""
        missed = max(1, t - self.last.get(client, t))
        return 0.0 if self.rules.oldest is not None and missed > self.rules.oldest else 1.0

    def keep(
        self, client: int, t: int, where: Positions, masks: Masks, vector: NDArray[np.float64], sent: Chosen
    ) -> Tensors:
        """Return the decoded vector; store the unsent values as the residual, and update FedDyn's memory."""
        names, decoded = parameters(where), vector.copy()
        if sent is not None:
            decoded = np.zeros_like(vector)
            decoded[sent] = vector[sent]
        for residual in self.residuals[client].values():
            residual *= self.age(client, t)
        write(self.residuals[client], where, names, vector - decoded, masks)
        self.last[client] = t
        tensors = {name: np.zeros_like(self.models[0][name]) for name in names}
        write(tensors, where, names, decoded, masks)
        for name in names:
            self.memories[client][name] -= self.rules.feddyn * tensors[name]
        return tensors

    def step(self, arrived: list[Arrived], t: int) -> None:
        """Take the server's step for every cluster with updates and for the shared tensors."""
        self.version += bool(arrived)
        for cluster in sorted({update.cluster for update in arrived} | ({ALL} if arrived else set())):
            members = [update for update in arrived if cluster in (update.cluster, ALL)]
            model = self.models[max(cluster, 0)]
            stepped = {name: value for name, value in model.items() if (name in self.rules.shared) == (cluster == ALL)}
            for name, (delta, held) in mean(self.rules, members, stepped, self.lr(t)).items():
                if is_buffer(name):
                    model[name][...] += delta
                    continue
                if self.rules.feddyn:
                    delta = delta - np.where(held > 0, self.remembered(cluster, name) / self.rules.feddyn, 0.0)
                key = (cluster, name)
                if key not in self.optimizers:
                    self.optimizers[key] = Optimizer(self.rules, model[name])
                self.optimizers[key].step(model[name], delta, held)

    def remembered(self, cluster: int, name: str) -> NDArray[np.float64]:
        """Return FedDyn's h: the mean memory of all clients, or of a cluster's members.

        Clients without a cluster count in proportion to the sizes of the clusters.
        """
        everyone = range(len(self.memories))
        if cluster == ALL or self.rules.clusters == 1:
            members, count = list(everyone), float(len(everyone))
        else:
            members = [k for k in everyone if self.clusters.trained[k] == cluster]
            known = sum(trained >= 0 for trained in self.clusters.trained)
            count = len(everyone) * len(members) / known
        total: NDArray[np.float64] = np.sum([self.memories[k][name] for k in members], axis=0) / count
        return total


def _slice(tensors: Tensors, where: Positions, masks: Masks | None = None) -> Tensors:
    kept = {name: value * (masks or {}).get(name, 1.0) for name, value in tensors.items()}
    return {name: kept[name][np.ix_(*parts)].copy() for name, parts in where.items()}
