"""A reader for the snapshots of a run: the nets of every level after a round, and tables of held and sent entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import safetensors
import torch
from torch import Tensor, nn

from hetfl.entries import gather_flat
from hetfl.errors import ConfigurationError
from hetfl.levels.copies import copy_name
from hetfl.models.static_batch_norm import StaticStatistics, static_layers
from hetfl.part import Part
from hetfl.snapshots.files import COUNTS, FOLDER, METADATA, Contents, checksum, path_of, rounds_in
from hetfl.submodel import prefix_index, state_of
from hetfl.wire import MalformedPayload, decode_part

Net = TypeVar("Net", bound=nn.Module)


class Snapshot:
    """The global model after one round, and the counts of held and sent entries of that round.

    Tensors are read only on access.

    Args:
        path: the file.

    Raises:
        ConfigurationError: the file is missing or is not a whole snapshot; on access: a tensor is damaged.

    Attributes:
        round: number of the round, from 0.
        levels: names of the levels, that of the global model first.
        cluster: the cluster whose model this is, with several global models.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            file: Any = safetensors.safe_open(path, framework="pt")
            self._contents = Contents.from_json((file.metadata() or {}).get(METADATA, "{}"))
        except OSError as error:
            raise ConfigurationError(f"Expected a snapshot but got no file that can be read: {error}") from error
        except (safetensors.SafetensorError, ValueError) as error:
            raise _damaged(path, error) from error
        self._file = file
        self.round, self.cluster = self._contents.round, self._contents.cluster
        self.levels = tuple(self._contents.levels)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The tensors of the global model by name: parameters, float buffers, frozen parameters; read on access."""
        return _Weights(self._contents.weights, self.read)

    @property
    def statistics(self) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
        """Mean and variance, each (C,), by level and static norm layer; empty if the round was not validated."""
        statistics: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
        for key in self._contents.checksums:
            kind, _, rest = key.partition("/")
            level, _, layer = rest.removesuffix("/mean").partition("/")
            if kind == "statistics" and key.endswith("/mean"):
                statistics.setdefault(level, {})[layer] = (self.read(key), self.read(f"statistics/{level}/{layer}/var"))
        return statistics

    def read(self, key: str) -> Tensor:
        """Return a copy of a tensor by its name in the file.

        Raises:
            ConfigurationError: the tensor is damaged or missing.
        """
        try:
            tensor: Tensor = self._file.get_tensor(key).clone()  # the file may return the same memory again
            if checksum(tensor) == self._contents.checksums[key]:
                return tensor
        except (safetensors.SafetensorError, KeyError) as error:
            raise _damaged(self.path, error) from error
        raise _damaged(self.path, f"the bytes of {key} are not those written")

    def layers(self) -> pd.DataFrame:
        """Return how much of each trained tensor was held and sent in the round: one row per level and tensor.

        Columns: ``step`` (the round), ``level``, ``tensor``; ``entries``, the number of entries of the global tensor;
        ``clients``, the number of clients of the level that hold entries of the tensor; ``held`` and ``sent``, the
        number of entries that these clients hold and send, summed over the clients; ``density``, sent divided by held,
        NaN if no client holds an entry. Float buffers, which are sent uncompressed, are not among the tensors.
        """
        trained = self._contents.trained
        of_all = {"tensor": trained, "entries": [self._entries(name) for name in trained]}
        tables = []
        for level in self.levels:
            counts = {kind: self.read(f"{kind}/{level}").numpy() for kind in COUNTS}
            tables.append(pd.DataFrame({"step": self.round, "level": level, **of_all, **counts}))
        table = pd.concat(tables, ignore_index=True)
        return table.assign(density=table["sent"] / table["held"])

    def _entries(self, name: str) -> int:
        try:
            return torch.Size(self._file.get_slice(f"weights/{name}").get_shape()).numel()
        except safetensors.SafetensorError as error:
            raise _damaged(self.path, error) from error

    def part(self, net: nn.Module, level: str) -> Part:
        """Return the part of the weights that the net of a level has after the round.

        It is the part that the part rule gives for the level itself. A random rule draws it like the part of a client.

        Args:
            net: a net of the level, built like the net of the run.
            level: name of the level.

        Raises:
            ConfigurationError: the net is not one of that level.
        """
        return self._part(dict(self.weights), net, level)

    def _part(self, weights: Mapping[str, Tensor], net: nn.Module, level: str) -> Part:
        tensors = state_of(net)
        size = sum(tensor.numel() for tensor in tensors.values())
        if size != self._contents.levels.get(level):
            known = ", ".join(f"{name} ({entries})" for name, entries in self._contents.levels.items())
            raise ConfigurationError(
                f"Expected a level and its net (entries) among {known} but got {level} ({size}) for {self.path}"
            )
        copies = {name: copy_name(name, level) for name in tensors if copy_name(name, level) in weights}
        held = {copies.get(name, name): tensor for name, tensor in tensors.items()}
        block, key = Part(prefix_index(weights, held, level)), f"parts/{level}"
        if key not in self._contents.checksums:
            return block
        whole = Part({name: tuple(slice(0, size) for size in tensor.shape) for name, tensor in weights.items()})
        try:
            return decode_part(self.read(key).numpy().tobytes(), block, whole)
        except MalformedPayload as error:
            raise _damaged(self.path, error) from error

    def fill(self, net: Net, level: str) -> Net:
        """Load the weights and statistics of a level into a net, and return the net in evaluation mode.

        Args:
            net: a net of the level, built like the net of the run, with any initial values.
            level: name of the level.

        Raises:
            ConfigurationError: the net is not one of that level; or it has static batch norm and the snapshot has no
                statistics, because the round was not validated.
        """
        whole, tensors = dict(self.weights), state_of(net)
        part, statistics, layers = self._part(whole, net, level), self.statistics, static_layers(net)
        if layers and level not in statistics:
            raise ConfigurationError(
                f"Expected statistics of static batch norm in {self.path} but got none: its round was not validated"
            )
        values_D = part.spread(gather_flat(whole, part))
        with torch.no_grad():
            for tensor, values in zip(tensors.values(), part.layout.views(values_D).values(), strict=True):
                tensor.copy_(values)
        for name, layer in layers.items():
            layer.load(StaticStatistics(*statistics[level][name], batches=1))
        return net.eval()


class _Weights(Mapping[str, Tensor]):
    def __init__(self, names: Sequence[str], read: Callable[[str], Tensor]) -> None:
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(f"weights/{name}")

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class RunSnapshots:
    """The snapshots of a run by round; a file is opened only on access.

    Args:
        folder: the run folder.
        cluster: the cluster whose models are read, with several global models.

    Raises:
        ConfigurationError: the folder has no such snapshots.

    Attributes:
        rounds: the rounds of the snapshots, ascending.
    """

    def __init__(self, folder: Path, cluster: int = 0) -> None:
        self.folder, self.cluster, self.rounds = folder, cluster, tuple(rounds_in(folder, cluster))
        if not self.rounds:
            whose = f" of cluster {cluster}" if cluster else ""
            raise ConfigurationError(
                f"Expected snapshots{whose} in {folder / FOLDER} but got none: set --snapshots.every to keep them"
            )

    def __len__(self) -> int:
        return len(self.rounds)

    def __iter__(self) -> Iterator[Snapshot]:
        return (self[round] for round in self.rounds)

    def __getitem__(self, round: int) -> Snapshot:
        if round not in self.rounds:
            kept = ", ".join(map(str, self.rounds))
            raise ConfigurationError(f"Expected a round with a snapshot in {self.folder}, {kept}, but got {round}")
        snapshot = Snapshot(path_of(self.folder, round, self.cluster))
        if (snapshot.round, snapshot.cluster) != (round, self.cluster):
            whose = f" and cluster {snapshot.cluster}" if snapshot.cluster or self.cluster else ""
            raise _damaged(snapshot.path, f"it is of round {snapshot.round}{whose}")
        return snapshot

    def layers(self) -> pd.DataFrame:
        """Return the concatenated :meth:`Snapshot.layers` of all rounds."""
        return pd.concat([snapshot.layers() for snapshot in self], ignore_index=True)


def load_snapshots(folder: str | Path, cluster: int = 0) -> RunSnapshots:
    """Open the snapshots of a run folder.

    Args:
        folder: the run folder.
        cluster: the cluster whose models are read, with several global models. A cluster that a split created has
            snapshots from the split on.

    Raises:
        ConfigurationError: the folder has no such snapshots.
    """
    return RunSnapshots(Path(folder), cluster)


def _damaged(path: Path, reason: object) -> ConfigurationError:
    return ConfigurationError(f"Expected a whole snapshot in {path} but got a damaged file: {reason}")
