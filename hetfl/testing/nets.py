"""The check of the contract of nets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from hetfl.levels.level_set import LevelSet
from hetfl.models.exits import exits_of
from hetfl.models.static_batch_norm import gathering
from hetfl.submodel import parameters_of
from hetfl.testing.rules import require, same
from hetfl.tree import Tree, leaves
from hetfl.types import Level, NetFactory


def check_net(
    net: NetFactory,
    inputs: Tree,
    num_outputs: int,
    widths: Sequence[float] = (1.0, 0.5, 0.25),
    depths: Sequence[int] = (),
) -> None:
    """Check that a net follows its contract.

    - A call builds a new net of a width, and of a depth if depths are given.
    - Outputs have shape (N, K), or (H, N, K) for a net that declares H exits.
    - A narrower or shallower net is smaller. Its tensors are leading blocks of those of the full net, and it computes
      the same as the full net with all other entries at zero.
    - Initial values depend only on torch's generator. Every trained parameter has a finite gradient.

    Args:
        net: the class, or a function that builds the net of a level.
        inputs: at least two samples, in the form that the net takes.
        num_outputs: number of outputs K.
        widths: widths of the levels; the first is 1.
        depths: depths of further levels, in descending order; empty: the net has no depths.

    Raises:
        AssertionError: a rule is broken; the message names the rule.
        ConfigurationError: a rule that every run checks is broken.
    """
    sizes = [(width, None) for width in widths] + [(1.0, depth) for depth in depths]
    levels = {f"l{number}": Level(f"l{number}", width, depth) for number, (width, depth) in enumerate(sizes)}
    nets = LevelSet(net, levels, seed=0)
    samples, name = len(leaves(inputs)[0]), type(nets.net).__name__
    for one, other in itertools.pairwise(nets):
        if nets[one].depth is not None or nets[other].depth is None:
            smaller = nets.sizes[other] < nets.sizes[one]
            got = f"{nets.sizes[other]} entries after {nets.sizes[one]}"
            require(smaller, f"a smaller {name} at {_size(nets[other])} than at {_size(nets[one])}", got)
    require(nets.build("l0") is not nets.build("l0"), f"a new net from every call of {name}", "the same one")
    values = [dict(nets.draw().named_parameters()) for _ in range(2)]
    require(same(*values), f"initial values of {name} only from torch's generator", "others from the same seed")
    nets.inspect(inputs, (samples, num_outputs), lambda level, round: nets.indices[level])
    for level in nets:
        _check_gradients(nets.build(level), inputs, f"{name} at {_size(nets[level])}")


def _size(level: Level) -> str:
    return f"width {level.width:g}" if level.depth is None else f"depth {level.depth}"


def _check_gradients(net: nn.Module, inputs: Tree, where: str) -> None:
    with gathering(net):
        outputs = net(inputs)
    exits = exits_of(net)
    weights = torch.linspace(0.5, 1.5, outputs.numel()).view(outputs.shape)
    (outputs.square() * weights).sum().backward()
    for name, parameter in parameters_of(net).items():
        reached = parameter.grad is not None and bool(parameter.grad.isfinite().all())
        got = "none" if parameter.grad is None else "NaN or Inf"
        require(reached, f"a finite gradient of {name!r} in {where}{f' of {exits} exits' if exits else ''}", got)
