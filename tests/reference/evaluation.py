"""The reference's evaluation: static statistics from the clients, then accuracies of levels, heads and clients."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from tests.reference.client import batches, dense_bytes, model_bytes
from tests.reference.federation import Federation, _slice
from tests.reference.layers import Array, Pass
from tests.reference.nets import Labels, Objective, Owned
from tests.reference.rules import Samples, is_buffer

NOBODY = -1
"""Stands for no client: the part of the level itself."""

Statistics = dict[str, tuple[Array, Array]]


class Evaluation:
    """Evaluates a federation's models after a round.

    Attributes:
        statistics: mean and variance of every static norm, by cluster and level.
        known: model version that the statistics belong to; None before the first statistics.
    """

    def __init__(self, federation: Federation) -> None:
        self.statistics: dict[tuple[int, str], Statistics] = {}
        self.known: int | None = None
        self.last = 0  # round
        self.federation, self.rules, self.given = federation, federation.rules, federation.given

    def settle(self, t: int, here: list[int]) -> set[int]:
        """Let clients without a cluster, or all clients, choose one; return the clients that downloaded models."""
        clusters = self.federation.clusters
        choosing = [k for k in here if self.rules.ask_all or k not in clusters.met] if self.rules.clusters > 1 else []
        if choosing:
            self.federation.ask(choosing, t, list(range(self.rules.clusters)))
            clusters.choose(t, choosing, {k: self.federation.losses(k, t) for k in choosing}, met=False)
        return set(choosing)

    def gather(self, t: int) -> None:
        """Rebuild every level's static statistics from forward passes of clients that can afford the level.

        Nothing happens if the models have not changed.
        """
        if self.known == self.federation.version:
            return
        self.known, self.statistics = self.federation.version, {}
        ledger = self.federation.ledger
        here = ledger.wait(t)
        informed = self.settle(t, here)
        ledger.begin_phase("statistics")
        has: defaultdict[tuple[int, int], list[dict[str, Owned]]] = defaultdict(list)
        order = sorted(self.rules.nets, key=lambda level: -self.rules.entries(level))
        for cluster in sorted(set(self.federation.clusters.assigned)):
            members = [k for k in here if self.federation.clusters.assigned[k] == cluster]
            for level in order:
                able = [k for k in members if self.rules.contains(self.given.level(k, t), level)]
                assert able
                passes = [self.passed(cluster, level, k, t) for k in able]
                if not passes[0]:
                    continue
                for client in able:
                    if client in informed:
                        has[client, cluster].append(self.federation.covered(self.given.level(client, t), t, client))
                    self.charge(client, level, t, has[client, cluster], passes[0])
                    has[client, cluster].append(self.federation.covered(level, t, NOBODY))
                everything = {name: [moments for each in passes for moments in each[name]] for name in passes[0]}
                self.statistics[cluster, level] = {
                    name: (np.mean([m for m, _ in moments], 0), np.mean([v for _, v in moments], 0))
                    for name, moments in everything.items()
                }

    def passed(self, cluster: int, level: str, client: int, t: int) -> dict[str, list[tuple[Array, Array]]]:
        """Return the moments of all batches of one client, by norm layer."""
        theta = _slice(self.federation.models[cluster], *self.federation.held(level, t, NOBODY))
        how, x = Pass(gathered={}), self.given.clients[client].train.x
        for rows in batches(self.given.statistics_order(t, client), self.rules.batch):
            self.rules.nets[level].forward(theta, x[rows], how)
        assert how.gathered is not None
        return how.gathered

    def charge(
        self,
        client: int,
        level: str,
        t: int,
        has: list[dict[str, Owned]],
        sums: dict[str, list[tuple[Array, Array]]],
    ) -> None:
        """Charge a client's pass. It uploads a sum of means and of variances per channel, and a count per layer."""
        needed = {name: held for name, held in self.federation.covered(level, t, NOBODY).items() if not is_buffer(name)}
        down = 0
        if not any(all((needed[name] <= other.get(name, False)).all() for name in needed) for other in has):
            down = model_bytes(sum(int(held.sum()) for held in needed.values()))
            down += self.federation.tell(level, t, NOBODY, client)
        up = dense_bytes(sum(2 * len(moments[0][0]) + 1 for moments in sums.values()))
        flops = self.federation.flops[level][0] * len(self.given.clients[client].train)
        self.federation.ledger.spend(client, down, flops, up)

    def logits(self, cluster: int, level: str, x: Array) -> list[Array]:
        """Return every head's logits."""
        theta = _slice(self.federation.models[cluster], *self.federation.held(level, self.last, NOBODY))
        how = Pass(static=self.statistics.get((cluster, level), {}))
        return self.rules.nets[level].forward(theta, x, how)[0]

    def levels(self, stage: str, samples: dict[int, Samples]) -> dict[str, float]:
        """Return loss and accuracies, averaged over clusters with their number of clients as weights.

        Args:
            stage: val or test.
            samples: samples that each cluster's model is evaluated on, by cluster.
        """
        assigned = self.federation.clusters.assigned
        columns: defaultdict[str, float] = defaultdict(float)
        for cluster, judged in samples.items():
            share = assigned.count(cluster) / len(assigned)
            for level in self.rules.nets:
                heads = self.logits(cluster, level, judged.x)
                whole = np.mean(heads, axis=0)
                columns[f"{stage}_accuracy_of:{level}"] += share * accuracy(whole, judged.y)
                if level != self.rules.largest:
                    continue
                columns[f"{stage}_loss"] += share * Objective(judged.y)([whole])[0]
                columns[f"{stage}_accuracy"] += share * accuracy(whole, judged.y)
                if stage == "val" and self.rules.clusters > 1:
                    columns[f"cluster_accuracy:{cluster}"] = accuracy(whole, judged.y)
                for number, head in enumerate(heads if self.rules.ramp_rounds else [], start=1):
                    columns[f"{stage}_accuracy_of_head:{number}"] += share * accuracy(head, judged.y)
        return dict(columns)

    def clients(self, t: int, submodels: bool = False) -> list[float | None]:
        """Return every client's test accuracy with its cluster's global model, or with its sub-model."""
        client_accuracies: list[float | None] = []
        for k, client in enumerate(self.given.clients):
            level = self.given.level(k, t) if submodels else self.rules.largest
            cluster = self.federation.clusters.of(k)
            if not len(client.test):
                client_accuracies.append(None)
                continue
            logits = np.mean(self.logits(cluster, level, client.test.x), axis=0)
            client_accuracies.append(accuracy(logits, client.test.y, client.owned if self.rules.masked else None))
        return client_accuracies

    def local(self, t: int) -> dict[str, float]:
        """Return the mean, the mean of the worst tenth, and the variance of the clients' accuracies."""
        accuracies, sizes = self.clients(t), [len(client.test) for client in self.given.clients]
        correct = sum(size * each for size, each in zip(sizes, accuracies, strict=True) if each is not None)
        known = sorted(each for each in accuracies if each is not None)
        worst = known[: max(1, len(known) // 10)]
        spread = sum((each - np.mean(known)) ** 2 for each in known) / len(known)
        return {
            "local_mean": float(np.mean(known)),
            "local_by_samples": correct / sum(sizes),
            "local_worst": float(np.mean(worst)),
            "local_std": float(spread**0.5),
            "local_var": float(spread),
        }

    def validation(self, t: int) -> dict[str, float]:
        self.last = t
        self.gather(t)
        present = sorted(set(self.federation.clusters.assigned))
        return {**self.levels("val", dict.fromkeys(present, self.given.validation)), **self.local(t)}

    def test(self, t: int) -> dict[str, float]:
        """Return the columns of a test; a model sees the samples of its cluster's clients and all unowned samples."""
        assigned, parts = self.federation.clusters.assigned, {}
        for cluster in sorted(set(assigned)):
            of = [
                c.test
                for c, assigned_cluster in zip(self.given.clients, assigned, strict=True)
                if assigned_cluster == cluster
            ]
            of.append(self.given.nobodys)
            parts[cluster] = Samples(np.concatenate([s.x for s in of]), np.concatenate([s.y for s in of]))
        return {**self.levels("test", parts), **self.local(t)}


def accuracy(logits: Array, targets: Labels, owned: Owned | None = None) -> float:
    """Return the share of samples whose class has the largest logit; logits of unowned classes are set to 0."""
    seen = logits if owned is None else np.where(owned, logits, 0.0)
    return float((seen.argmax(1) == targets).mean())
