"""InclusiveFL's momentum distillation: the last block of a small model follows the deeper blocks of a larger one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.hooks.base import Hook
from hetfl.layout import Index
from hetfl.part import Part, part_of
from hetfl.piece import Facts
from hetfl.submodel import add, take
from hetfl.types import Report
from hetfl.updates import DenseUpdate, Update

Blocks = dict[int, dict[str, Tensor]]
"""By number of a block, its tensors by their names within the block."""


class MomentumDistillation(Hook):
    r"""Mix into the update of a client's last block the deeper blocks of the nearest larger size, of the round before.

    .. math:: u_{k,l} \leftarrow (1 - \beta) \, u_{k,l}
        + \frac{\beta}{L - l} \sum_{j = l + 1}^{L} \bar u_j(t - 1)

    for a client whose last block is l. L is the number of blocks of the nearest larger size with clients in the round
    before, and :math:`\bar u_j(t - 1)` is the mean of the updates of block j over these clients; the paper has the next
    larger size. Without such clients the update stays as it is. The mean over the holders of an entry comes after it.
    The tensors of blocks must have equal shapes; they are compared by their names within the block.

    Liu, Wu, Wu, Wang, Lyu, Chen, Xie: No One Left Behind: Inclusive Federated Learning over Heterogeneous Devices, KDD
    2022 (arXiv 2202.08036). The default :math:`\beta` is that of the code of FedRA (Su, Li, Xue, 2023, arXiv
    2311.11227).

    Args:
        beta: :math:`\beta`, the share of the larger size.
        blocks: pattern of the names of a block's tensors, with one ``*`` for the number of the block.

    Raises:
        ConfigurationError: ``beta`` is not in [0, 1], or ``blocks`` does not have one ``*``.
    """

    def __init__(self, beta: float = 0.2, blocks: str = "stages.*.trunk.") -> None:
        if not 0.0 <= beta <= 1.0:
            raise ConfigurationError(f"Expected beta in [0, 1] for MomentumDistillation but got {beta}")
        if blocks.count("*") != 1:
            raise ConfigurationError(f"Expected one * in blocks, for the number of a block, but got {blocks!r}")
        self.beta, self.blocks = beta, blocks
        self._name = re.compile(re.escape(blocks).replace(r"\*", r"(\d+)") + "(.+)")
        self._parameters: Mapping[str, Tensor] = {}
        self._present: dict[tuple[int, str], tuple[int, Blocks]] = {}  # by model and level: clients, sums of updates
        self._before: dict[tuple[int, str], tuple[int, Blocks]] = {}

    def setup(self, facts: Facts) -> None:
        """Set the global model's parameters.

        Raises:
            ConfigurationError: no name matches ``blocks``, or two blocks after the first have tensors of other shapes.
        """
        self._parameters = facts.parameters
        shapes: dict[int, dict[str, tuple[int, ...]]] = {}
        for name, tensor in self._parameters.items():
            if place := self._place(name):
                shapes.setdefault(place[0], {})[place[1]] = tuple(tensor.shape)
        if not shapes:
            raise ConfigurationError(
                f"Expected blocks that match tensors, such as {next(iter(self._parameters))!r}, but got {self.blocks!r}"
            )
        kinds = [block for number, block in shapes.items() if number]
        for leaf in dict.fromkeys(leaf for block in kinds for leaf in block):
            if len({block.get(leaf) for block in kinds}) > 1:
                raise ConfigurationError(
                    f"Expected blocks {self.blocks!r} of equal shapes for MomentumDistillation but got "
                    f"{[block.get(leaf) for block in kinds]} of {leaf!r}: give the net equal hidden sizes"
                )

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self._before, self._present = self._present, {}

    def observe(self, update: Update, index: Index, report: Report) -> None:
        """Add an update to the sums of its level."""
        part, key = part_of(index), (report.model, report.level)
        count, sums = self._present.get(key, (0, {}))
        for name, values in part.layout.views(part.spread(update.whole())).items():
            if place := self._place(name):
                block = sums.setdefault(place[0], {})
                total = block.setdefault(place[1], values.new_zeros(self._parameters[name].shape))
                add(total, part[name], values)
        self._present[key] = count + 1, sums

    def on_update(self, update: Update, index: Index, report: Report) -> Update:
        """Return the update with the larger size's momentum in its last block.

        Raises:
            ConfigurationError: the last block has other shapes than the deeper ones.
        """
        part = part_of(index)
        last = max((place[0] for name in part if (place := self._place(name))), default=-1)
        momentum = self._momentum(report.model, last)
        if not momentum:
            return update
        vector_D = part.spread(update.whole()).clone()
        for name, values in part.layout.views(vector_D).items():
            if (place := self._place(name)) and place[0] == last:
                values.copy_((1 - self.beta) * values + self.beta * self._entries(momentum, place[1], name, part))
        return DenseUpdate(part.packed(vector_D)[: update.size], exact=update.exact)

    def _place(self, name: str) -> tuple[int, str] | None:
        """Return the number of a parameter's block, and its name there; None: it is in no block."""
        match = self._name.fullmatch(name) if name in self._parameters else None
        return (int(match[1]), match[2]) if match else None

    def _entries(self, momentum: Mapping[str, Tensor], leaf: str, name: str, part: Part) -> Tensor:
        wanted = tuple(self._parameters[name].shape)
        if leaf not in momentum or tuple(momentum[leaf].shape) != wanted:
            got = tuple(momentum[leaf].shape) if leaf in momentum else "none"
            raise ConfigurationError(
                f"Expected deeper blocks with {leaf!r} of shape {wanted}, that of {name!r}, for MomentumDistillation "
                f"but got {got}: give the smallest level more than one block"
            )
        return take(momentum[leaf], part[name])

    def _momentum(self, model: int, last: int) -> dict[str, Tensor]:
        """Return the mean update of the deeper blocks of the nearest larger size in the round before, by tensor."""
        deepest = {key: max(sums, default=-1) for key, (_, sums) in self._before.items() if key[0] == model}
        larger = [(number, key) for key, number in deepest.items() if number > last]
        if not larger:
            return {}
        count, sums = self._before[min(larger)[1]]
        deeper = [block for number, block in sorted(sums.items()) if number > last]
        return {leaf: torch.stack([block[leaf] for block in deeper]).mean(0) / count for leaf in deeper[0]}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        rows = [[model, level, count, sums] for (model, level), (count, sums) in self._present.items()]
        return {"present": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        rows = state["present"]
        self._present = {(model, level): (count, dict(sums)) for model, level, count, sums in rows}
