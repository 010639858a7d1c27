"""Masks that clients have of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from hetfl.pruning.densities import Masks, density_of, packed, unpacked


class ClientMasks(dict[int, Masks]):
    """The masks of clients by their ids; a client without an entry has those of its level."""

    def density(self) -> float:
        """Return the mean density of the clients that have masks of their own, over all weights; 1 if none has."""
        return sum(map(density_of, self.values())) / len(self) if self else 1.0

    def packed(self) -> dict[int, dict[str, Tensor]]:
        """Return the masks as bits, for a checkpoint."""
        return {client: packed(masks) for client, masks in self.items()}

    @classmethod
    def unpacked(cls, bits: Mapping[int, Mapping[str, Tensor]], shapes: Mapping[str, Sequence[int]]) -> ClientMasks:
        """Return the masks that :meth:`packed` returned.

        Args:
            bits: the masks as bits.
            shapes: of the weights, by name.
        """
        return cls({client: unpacked(each, {name: shapes[name] for name in each}) for client, each in bits.items()})
