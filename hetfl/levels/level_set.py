"""The levels of a run: named sizes, their nets, and the block of the global model that each level holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.fleet import Work
from hetfl.levels.budgets import Allowance, Axis, Budgets
from hetfl.levels.checks import check_first, check_level
from hetfl.levels.copies import LevelCopies
from hetfl.levels.sizes import make_net, rescale
from hetfl.local.flops import flops_per_sample, layer_shares
from hetfl.local.nesting import check_nesting
from hetfl.models.exits import exits_of
from hetfl.models.static_batch_norm import gathering
from hetfl.part import Part, only
from hetfl.seeding import derive, seed_torch
from hetfl.submodel import frozen_of, prefix_index, state_of
from hetfl.tree import Tree, cast, in_words, shapes, taken
from hetfl.types import Level, NetFactory, Task

Predict = Callable[[nn.Module, Tree], Tensor]
"""Returns the prediction of a method, logits (N, K), for a net and inputs."""

Check = Callable[[Tensor, Callable[[Tree], Tensor]], object]
"""Refuses a prediction, or a function that predicts."""

LevelPart = Callable[[str, int], Part]
"""Returns the part of a level in a round."""


class LevelSet(Mapping[str, Level]):
    """Levels by name; the first level is the global model and the largest.

    Args:
        factory: builds the net of a level.
        levels: sizes by name, with widths relative to the global model, so that the first is 1; or cost budgets.
        seed: seed of the initial values of the global model.
        own_axis: the axis of the method, for budgets without an axis.
        per_level: patterns of names of the tensors of which each level has its own copy; None: there are none.

    Attributes:
        budgets: the cost budgets; None for levels that are given by size.
        allowances: cost limit and cost by level; empty without budgets.
        largest: name of the first level.
        net: the global model.
        blocks: by level, the leading block of every tensor that its sub-model has.
        copies: the per-level tensors.
        frozen: names of the parameters that the nets of all levels have and do not train.
        indices: by level, the block in the global model that its sub-model holds: ``blocks``, with the level's copies.
        whole: all of every tensor of the global model.
        sizes: by level, the number of entries that it holds, float buffers and frozen parameters included.
        parameters: by level, the number of parameters.
        flops: by level, the FLOPs of one sample for a forward pass, and for forward and backward; empty before
            :meth:`inspect`.
        samples: a few samples, in the form that nets take; None before :meth:`inspect`.

    Raises:
        ConfigurationError: there are no levels; a name, width, depth, density or rank is out of range; the first level
            is not the largest; the net does not take the axis; the net of a level is not a leading block of the global
            model.
    """

    def __init__(
        self,
        factory: NetFactory,
        levels: Mapping[str, Level] | Budgets,
        seed: int,
        own_axis: Axis = "width",
        per_level: Sequence[str] | None = None,
    ) -> None:
        self._factory = factory
        self.budgets = levels if isinstance(levels, Budgets) else None
        self.allowances: dict[str, Allowance] = {}
        if isinstance(levels, Budgets):
            levels, self.allowances = levels.choose(factory, own_axis)
        self._levels = {name: replace(level, name=name) for name, level in levels.items()}
        if not levels:
            raise ConfigurationError("Expected at least one level but got none")
        for level in self._levels.values():
            check_level(level)
        self.largest = next(iter(self._levels))
        check_first(self._levels[self.largest])
        self._seed, self._shares = seed, dict[str, dict[str, float]]()
        self.flops: dict[str, tuple[float, float]] = {}
        self.samples: Tree | None = None
        self.copies = LevelCopies()
        self.net = self.draw()
        whole = state_of(self.net)
        nets = {name: self.build(name) for name in self}
        parts = {name: state_of(net) for name, net in nets.items()}
        self.blocks = {name: Part(prefix_index(whole, part, name)) for name, part in parts.items()}
        self.copies = LevelCopies(per_level or (), self.blocks)
        self.frozen = self.copies.with_copies(frozen_of(self.net))
        whole = state_of(self.copies.add_to(self.net))
        self.indices = {name: self.copies.index(name) for name in self}
        self.whole = Part(prefix_index(whole, whole, self.largest)) if self.copies.names else self.blocks[self.largest]
        self.sizes = {name: sum(tensor.numel() for tensor in part.values()) for name, part in parts.items()}
        self.parameters = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
        self._compare_sizes()

    def __getitem__(self, name: str) -> Level:
        return self._levels[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._levels)

    def __len__(self) -> int:
        return len(self._levels)

    def build(self, name: str) -> nn.Module:
        """Return a new net of a level.

        Raises:
            ConfigurationError: the constructor of the net does not take the axis or the size of the level.
        """
        level = self._levels[name]
        try:
            if name not in self.allowances:
                return make_net(self._factory, width=level.width, depth=level.depth, rank=level.rank)
            net = self.allowances[name].size.make(self._factory)
        except ConfigurationError as error:
            raise ConfigurationError(f"{error} (level {name})") from None
        rescale(net, float(self.allowances[self.largest].size.width))
        return net

    def _compare_sizes(self) -> None:
        """Refuse a level larger than the first; warn of a net that ignores its width. Budgets may give equal nets."""
        for name, size in self.sizes.items():
            if size > self.sizes[self.largest]:
                raise ConfigurationError(
                    f"Expected the first level to be the largest but got {name} with {size} entries against "
                    f"{self.sizes[self.largest]}"
                )
        narrow = [name for name, level in self._levels.items() if level.width < 1 and name not in self.allowances]
        if narrow and all(self.blocks[name] == self.blocks[self.largest] for name in narrow):
            rank_zero_warn(
                f"Expected a net that is smaller at level {narrow[-1]}, of width {self._levels[narrow[-1]].width}, but "
                f"got {type(self.net).__name__} of one size: does it use the width that its constructor is given?"
            )

    def draw(self, *names: str | int) -> nn.Module:
        """Return a new net of the largest level with its own initial values.

        Args:
            names: the purpose, which selects the random numbers; none: the first global model.
        """
        with torch.random.fork_rng(devices=[]):
            seed_torch(derive(self._seed, "net", *names))
            return self.copies.add_to(self.build(self.largest))

    def inspect(
        self,
        inputs_N: Tree,
        output_shape: tuple[int, ...],
        part: LevelPart | None = None,
        predict: Predict | None = None,
        check: Check | None = None,
        noun: str = "",
    ) -> dict[str, tuple[float, float]]:
        """Return the FLOPs of one sample by level, forward and forward with backward; check that the nets nest.

        Args:
            inputs_N: a few samples, in the form that nets take.
            output_shape: shape of the outputs for these samples, such as (N, K), without the dimension of exits.
            part: returns the part of a level in a round; the parts of two rounds are checked to compute the same as
                the global net with the other entries at zero. None: no such check.
            predict: returns the prediction of the method for a net and inputs; None: no check of its shape.
            check: is called with the prediction of the largest level, and a function that predicts for other inputs;
                None: no further check.
            noun: what the outputs are, such as ``10 classes``, for messages; empty: not known.

        Raises:
            ConfigurationError: a net does not take the samples, has outputs of another shape, or is not the leading
                channels and first stages of the global net; the method cannot use the exits of the net; the samples do
                not have the ``sample_shape`` of the budgets.
        """
        self.samples, self._shares = inputs_N, {}  # before part rules are asked, which may trace the net with them
        wanted = None if self.budgets is None else self.budgets.sample_shape
        if wanted is not None and [wanted] != (sample_shapes := [list(shape[1:]) for shape in shapes(inputs_N)]):
            shape = sample_shapes[0] if len(sample_shapes) == 1 else f"of one tensor rather than {sample_shapes}"
            raise ConfigurationError(
                f"Expected sample_shape {shape}, the data's, for budgets by flops but got {wanted}"
            )
        for name in self:
            net = self.build(name)
            self._probe(net, inputs_N, output_shape, name, noun and f" for {noun}")
            if predict is not None and name == self.largest:
                _probe_method(predict, net, inputs_N, output_shape, check)
            parts = [] if part is None or name == self.largest else [part(name, round) for round in (0, 1)]
            for each in {each.key: each for each in parts}.values():
                check_nesting(self.net, net, self.copies.block(each), inputs_N, name)
            self.flops[name] = flops_per_sample(net, taken(inputs_N, slice(2)))
        return self.flops

    def _probe(self, net: nn.Module, inputs_N: Tree, output_shape: tuple[int, ...], name: str, goal: str) -> None:
        try:
            with torch.no_grad(), gathering(net):
                outputs = net(inputs_N)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"Expected the net at level {name} to take inputs of {in_words(inputs_N)} but got: "
                f"{(str(error) or type(error).__name__).splitlines()[0]}"
            ) from error
        exits, got = exits_of(net), tuple(outputs.shape) if isinstance(outputs, Tensor) else ()
        wanted = output_shape if exits is None else (exits, *output_shape)
        if got != wanted:
            several = f" (a net of {got[0]} exits declares them: exits = {got[0]})" if got[1:] == wanted else ""
            raise ConfigurationError(
                f"Expected outputs of shape {wanted}{goal} from the net at level {name} but got "
                f"{got or type(outputs).__name__} from {type(net).__name__}{several}"
            )

    def work(self, task: Task, down_bytes: int, passes: int, up_bytes: int = 0, training: bool = False) -> Work:
        """Return the work of a client for a task: bytes and FLOPs.

        Args:
            task: the task, with its part.
            down_bytes: bytes that the client receives.
            passes: number of samples that the client passes through its net.
            up_bytes: bytes that the client sends.
            training: whether passes include the backward pass.
        """
        flops = self.flops[task.level][training] * passes
        return Work(down_bytes, flops, up_bytes, self.flop_density(task.level, task.part))

    def flop_density(self, level: str, part: Part) -> float:
        """Return the fraction of the FLOPs of a level that belongs to weight entries of a part; 1 without a mask.

        The FLOPs of each layer are multiplied by the density of its weights. The FLOPs are those of a forward pass.
        """
        return 1.0 if part.mask_D is None else part.derived("flops", lambda: self._flop_density(level, part))

    def layer_shares(self, level: str) -> dict[str, float]:
        """Return each weighted layer's share of the FLOPs of a level, by the layer's name; after :meth:`inspect`."""
        if level not in self._shares:  # only runs with masks need it
            net = self.build(level)
            samples = cast(taken(self.samples, slice(2)), next(net.parameters()).dtype)
            self._shares[level] = layer_shares(net, samples)
        return self._shares[level]

    def _flop_density(self, level: str, part: Part) -> float:
        density = 1.0
        for layer, share in self.layer_shares(level).items():
            weights = [name for name in part if name.rpartition(".")[0] == layer and len(part[name]) > 1]
            held, all_of_them = only(part, frozenset(weights)).size, only(part.dense, frozenset(weights)).size
            if all_of_them:  # else a weight that an earlier layer has, too
                density -= share * (1.0 - held / all_of_them)
        return density

    def moving(self, part: Part) -> Part:
        """Return a part without frozen parameters and without its mask: the vectors of resident nets."""
        dense = part.dense
        return only(dense, frozenset(dense) - self.frozen) if self.frozen else dense

    def affords(self, has: str, level: str) -> bool:
        """Return whether a client of level ``has`` can run the sub-model of ``level``: it holds all its entries."""
        return self.blocks[has].covers(self.blocks[level])


def _probe_method(
    predict: Predict,
    net: nn.Module,
    inputs_N: Tree,
    output_shape: tuple[int, ...],
    check: Check | None,
) -> None:
    with torch.no_grad(), gathering(net):
        outputs = predict(net, inputs_N)
        if outputs.shape != output_shape:
            raise ConfigurationError(
                f"Expected the method to predict outputs of shape {output_shape} but got {tuple(outputs.shape)}: "
                "does the net have the exits that the method needs?"
            )
        if check is not None:
            check(outputs, partial(predict, net))
