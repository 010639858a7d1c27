"""Masks of entries that leave whole channels out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.pruning.channels.groups import Group
from hetfl.pruning.channels.scores import channel_scores, ranking
from hetfl.pruning.criteria import Evidence, NormScale


class ScaledChannels:
    """The channels of a net that have norm scales.

    Args:
        groups: of the net's channels.
        parameters: of the net, by name.

    Attributes:
        convolutions: names of the weights of more than two dimensions that write channels of a group with norm scales.

    Raises:
        ConfigurationError: no group has norm scales.
    """

    def __init__(self, groups: Sequence[Group], parameters: Mapping[str, Tensor]) -> None:
        self._shapes = {name: tensor.shape for name, tensor in parameters.items() if tensor.dim() > 1}
        scales = NormScale().scores(Evidence(parameters))
        self.groups = [group for group in groups if any(member.tensor in scales for member in group.members)]
        if not self.groups:
            raise ConfigurationError("Expected a net with norm layers, whose scales score channels, but got none")
        written = {member.tensor for group in self.groups for member in group.members if not member.reads}
        self.convolutions = frozenset(name for name in written & self._shapes.keys() if len(self._shapes[name]) > 2)

    def masks(self, values: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """Return masks of the entries that write or read kept channels, by name of the weights of the groups.

        A share of the channels of each group is left out, rounded, those with the smallest absolute norm scales; one
        always stays.

        Args:
            values: parameters by name, norm scales included.
            share: of the channels that are left out, in [0, 1).
        """
        scores = NormScale().scores(Evidence(values))
        masks: dict[str, Tensor] = {}
        for group in self.groups:
            order = ranking(channel_scores(group, scores, of_norms=True))
            left_out = order[max(1, group.size - round(share * group.size)) :]
            for member in group.members:
                if member.tensor in self._shapes:
                    shape = self._shapes[member.tensor]
                    mask = masks.setdefault(member.tensor, torch.ones(shape, dtype=torch.bool))
                    mask.index_fill_(member.dim, member.positions(left_out), False)
        return masks
