"""The base class of part rules, which choose the part of a global model that a client holds in a round."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.levels.level_set import LevelSet
from hetfl.part import Part, only
from hetfl.piece import Piece
from hetfl.pruning.gradients import ClientGradient, GradientRequest, MeanGradients
from hetfl.question import Question
from hetfl.submodel import parameters_of

NOBODY = -1
"""Used in place of a client's id for the part of a level itself, in evaluations, sizes and exports."""

Channels = Callable[[int, int], slice | Tensor]
"""Returns the positions of the held channels, given the number of all channels and the number of held ones."""


def rise_within(positions: slice | Tensor, size: int) -> bool:
    """Return whether positions are a slice without a step, or rising int64, in a dimension of a size."""
    if isinstance(positions, slice):
        return 0 <= positions.start <= positions.stop <= size and positions.step is None
    if positions.dtype != torch.int64 or bool((positions.diff() <= 0).any()):
        return False
    return not positions.numel() or (int(positions[0]) >= 0 and int(positions[-1]) < size)


class GradientProbe(Protocol):
    """Asks clients for gradients of the present global model."""

    def level(self, client: int) -> str:
        """Return the name of a client's level in the round."""
        ...

    def gradients(self, clients: Sequence[int], request: GradientRequest) -> Iterable[ClientGradient]:
        """Yield the gradients of the clients that answer, in their order; bytes and FLOPs are charged."""
        ...


class AskingProbe(GradientProbe, Protocol):
    """Asks clients for gradients, and questions."""

    def model(self, client: int) -> int:
        """Return the number of a client's global model."""
        ...

    def answers(self, clients: Sequence[int], question: Question) -> dict[int, Tensor]:
        """Return by client the answers, float64, shape (size,); a client without a valid answer is left out."""
        ...


def mean_gradients(
    like: Mapping[str, Tensor], cohort: Sequence[int], probe: GradientProbe, request: GradientRequest
) -> MeanGradients:
    """Return the mean of the gradients that a cohort sends.

    Args:
        like: tensors of the global model whose gradients are needed.
        cohort: the clients that are asked.
        probe: asks them.
        request: what they send.
    """
    means = MeanGradients(like)
    for answer in probe.gradients(cohort, request):
        means.add(answer)
    return means


class PartRule(Piece):
    """Makes parts. Only the server's process calls a rule; the tasks carry the parts to the clients.

    A part is a function of the seed, the level, the round, the client, and the rule's observations.

    Attributes:
        levels: the levels; ``levels.indices`` has the leading block of each.
        seed: of every random choice.
    """

    masks: ClassVar[bool] = False
    """Whether parts may have a mask, and levels a density below 1."""

    per_level: ClassVar[bool] = False
    """Whether levels may have their own copies of some tensors."""

    replayable: ClassVar[bool] = True
    """Whether the parts of any round can be asked for at any time: they depend on the arguments and the seed alone."""

    personal: bool = False
    """Whether clients have parts of their own: an evaluation then also measures every client's own sub-model."""

    trains_all: bool = False
    """Whether clients also train the entries of the index that the mask leaves out, from zero, and may send them."""

    trains_sent: bool = False
    """Whether clients train only the entries that they send: the others that they hold stay as they were sent."""

    asks_gradients: bool = False
    """Whether :meth:`consult` asks clients for gradients."""

    def meet(self, levels: LevelSet, seed: int) -> None:
        """Set the levels and the seed.

        Raises:
            ConfigurationError: a level has a density below 1, and the rule makes no masks; or there are per-level
                tensors, and the rule does not take them.
        """
        self.levels, self.seed = levels, seed
        if levels.copies.names and not self.per_level:
            raise ConfigurationError(
                f"Expected a part rule for per_level tensors, such as hetfl.parts.Prefix, but got {type(self).__name__}"
            )
        for name, level in levels.items():
            if level.density < 1 and not self.masks:
                raise ConfigurationError(
                    f"Expected density 1 at level {name}, as parts of {type(self).__name__} have no mask, but got "
                    f"{level.density:g}: choose a rule with masks, such as hetfl.parts.RandomMask"
                )

    def consult(self, round: int, cohort: Sequence[int], probe: AskingProbe) -> None:
        """Ask clients before the parts of a round are drawn; by default nothing is asked.

        Args:
            round: the round.
            cohort: its clients.
            probe: asks clients.
        """

    @abstractmethod
    def part(self, level: str, round: int, client: int) -> Part:
        """Return the part that a client of a level holds in a round.

        The tensors have the shapes of the level's net. The largest level holds all entries of every tensor that may
        change.

        Args:
            level: name of the level.
            round: number of the round.
            client: the client's id; :data:`NOBODY` for the level itself.
        """

    def first_values(self, client: int) -> Mapping[str, Tensor] | None:
        """Return the trained parameters that a client begins its training with; None: those of the global model.

        The client's update is still the difference from the global model. Only rules that ask clients return values,
        as nodes on Flower do not have them.

        Args:
            client: the client's id.

        Returns:
            Values in the shapes of the global model, by name.
        """
        return None

    def sent(self, part: Part, level: str, round: int, client: int) -> Part:
        """Return the entries of its part that the client sends and counts as a holder of; by default all of them.

        It depends on its arguments alone, as nodes call it, too.
        """
        return part

    def check(self, part: Part, level: str) -> None:
        """Refuse a part that a client of a level cannot hold.

        Raises:
            ConfigurationError: it is not a part, its tensors do not have the shapes of the level's net, it has a mask
                and the rule does not declare masks, its positions do not rise within the global model's tensors, or its
                mask leaves out entries of a buffer or a frozen parameter, which every client holds whole.
        """
        if not isinstance(part, Part):
            raise ConfigurationError(
                f"Expected a Part (hetfl.part) from {type(self).__name__}.part but got {type(part).__name__}"
            )
        shapes, block = part.layout.shapes, self.levels.indices[level].layout.shapes
        if list(shapes.items()) != list(block.items()):
            where = next((repr(n) for n in [*shapes, *block] if shapes.get(n) != block.get(n)), "the order of tensors")
            raise ConfigurationError(
                f"Expected parts of the shapes of the net at level {level} from {type(self).__name__} but got others "
                f"at {where}"
            )
        if part.mask_D is not None and not self.masks:
            raise ConfigurationError(
                f"Expected masks = True in {type(self).__name__}, whose parts have masks, but got False, and a mask at "
                f"level {level}"
            )
        if where := part.derived("misplaced", lambda: self._misplaced(part)):
            raise ConfigurationError(
                f"Expected rising positions within the global model from {type(self).__name__} but got others in "
                f"{where} at level {level}"
            )
        if not part.derived("whole", lambda: self._rest_is_whole(part)):
            raise ConfigurationError(
                f"Expected masks of trained parameters alone from {type(self).__name__} but got one of other tensors "
                f"at level {level}"
            )

    def _misplaced(self, part: Part) -> str:
        """Return the name of a tensor whose positions do not rise within the global model's; empty if there is none."""
        whole = self.levels.whole.layout.shapes
        for name, dimensions in part.items():
            for held, size in zip(dimensions, whole[name], strict=True):
                if not rise_within(held, size):
                    return repr(name)
        return ""

    def _rest_is_whole(self, part: Part) -> bool:
        trained = parameters_of(self.levels.net)
        return part.mask_D is None or only(part, frozenset(n for n in part if n not in trained)).mask_D is None

    def of_level(self, level: str, round: int) -> Part:
        """Return the part that represents a level where there is no client: in evaluations, sizes and exports.

        Raises:
            ConfigurationError: the part does not pass :meth:`check`.
        """
        part = self.part(level, round, NOBODY)
        self.check(part, level)
        return part

    def of_channels(self, level: str, channels: Channels) -> Part:
        """Return the part of a level whose tensors hold, in each dimension, the channels that a function chooses.

        A dimension that a level holds whole (classes, input channels, kernels) stays whole. Layers with equal numbers
        of channels get the same channels, so that residual additions and successive layers use matching channels.

        Args:
            level: name of the level.
            channels: returns the held channels of a dimension.
        """
        whole, block = self.levels.whole.layout.shapes, self.levels.indices[level].layout.shapes
        chosen: dict[tuple[int, int], slice | Tensor] = {}

        def positions(of: int, held: int) -> slice | Tensor:
            if of == held:
                return slice(0, of)
            if (of, held) not in chosen:
                chosen[of, held] = self._positions(channels(of, held))
            return chosen[of, held]

        pairs = {name: zip(whole[name], shape, strict=True) for name, shape in block.items()}
        return Part({name: tuple(positions(of, held) for of, held in sizes) for name, sizes in pairs.items()})

    def _positions(self, held: object) -> slice | Tensor:
        """Return the positions that a rule chose.

        Raises:
            ConfigurationError: they are neither a slice nor a tensor of int64.
        """
        if isinstance(held, slice) or (isinstance(held, Tensor) and held.dtype == torch.int64):
            return held
        kind = str(held.dtype) if isinstance(held, Tensor) else type(held).__name__
        raise ConfigurationError(
            f"Expected a slice or a tensor of torch.int64 as channels from {type(self).__name__} but got {kind}"
        )
