"""Asks the clients of a run for activations, and chooses the channels that speak for a class.

Wang, Guo, Xie, Qi: Federated Unlearning via Class-Discriminative Pruning, WWW 2022 (arXiv 2110.11794).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from hetfl import wire
from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.local import Result
from hetfl.local.activations import Reader, activations, unpack_activations
from hetfl.parts import PrunedGroup
from hetfl.pruning.channels.class_channels import most_telling, tf_idf
from hetfl.pruning.channels.groups import Group, channel_groups
from hetfl.types import Task


def telling_channels(module: FederatedModule, forget: int, share: float) -> list[PrunedGroup]:
    """Return the channels of each group that speak most for a class; the clients within reach are asked.

    Each group of channels has its own ranking (:func:`~hetfl.pruning.channels.class_channels.tf_idf`). Groups that no
    convolution and no linear layer reads stay whole.

    Args:
        module: in an evaluation, with the models that are pruned.
        forget: the class.
        share: of the channels of each group, in (0, 1).

    Raises:
        ConfigurationError: no group can be pruned, no client within reach has samples of the class, or the share is
            below half a channel of every group.
    """
    levels, net = module.levels, module.levels.net
    readers = [(group, readers_of(module, group)) for group in channel_groups(net, levels.samples)]
    readers = [(group, each) for group, each in readers if each]
    if not readers:
        raise ConfigurationError(
            f"Expected a net with channels that convolutions or linear layers read but got {type(net).__name__}"
        )
    counts_K, means = mean_activations(module, readers)
    if not counts_K[forget]:
        raise ConfigurationError(f"Expected samples of class {forget} at a client within reach but got none")
    pruned = []
    for (group, (reader, *_)), means_KC in zip(readers, means, strict=True):
        shapes = [block.layout.shapes[reader.tensor] for block in levels.indices.values() if reader.tensor in block]
        narrowest = min(shape[reader.dim] // reader.block for shape in shapes)
        channels = most_telling(tf_idf(means_KC)[forget], share, narrowest).tolist()
        pruned += [PrunedGroup.of(group, channels, module.models.trained)] if channels else []
    if not pruned:
        raise ConfigurationError(
            f"Expected a share of at least half a channel but got {share:g} of groups of at most "
            f"{max(group.size for group, _ in readers)} channels"
        )
    return pruned


def readers_of(module: FederatedModule, group: Group) -> list[Reader]:
    """Return the convolutions and linear layers that read the channels of a group."""
    readers = [Reader(each.tensor, each.dim, each.block) for each in group.members if each.reads]
    return [reader for reader in readers if Reader.known(reader.layer(module.levels.net))]


def mean_activations(
    module: FederatedModule, readers: Sequence[tuple[Group, Sequence[Reader]]]
) -> tuple[Tensor, list[Tensor]]:
    r"""Return the number of samples of each class (K,), and for each group its activations (K, C), float64.

    .. math:: A_{k,c} = \sum_r \frac{\sum_{i \in \mathcal{H}_c} a_{i,r,k,c}}{\sum_{i \in \mathcal{H}_c} n_{i,k}}

    over the layers r that read the group, with :math:`\mathcal{H}_c` the clients whose part has channel c,
    :math:`a_{i,r,k,c}` the sum of client i over its :math:`n_{i,k}` samples of class k. It is 0 where nobody has any.

    Every client within reach downloads its part, passes its data through it once, and sends the sums; bytes and FLOPs
    are charged as those of a probe.

    Args:
        module: in an evaluation.
        readers: the groups, and the layers that read them.
    """
    probing, ledger, levels = module.round.probing, module.ledger, module.levels
    classes, flat = module.data.num_classes, [reader for _, each in readers for reader in each]
    sizes = [group.size for group, each in readers for _ in each]
    totals = [torch.zeros(classes, size, dtype=torch.float64) for size in sizes]
    counts = [torch.zeros(classes, size, dtype=torch.float64) for size in sizes]
    counts_K = torch.zeros(classes, dtype=torch.float64)
    probe = probing.of_round(module.models.last_round)
    tasks = [probe.task(client) for client in probe.clients]
    ledger.begin_phase("probes")
    for result in _asked(module, flat, tasks):
        channels = [_held(result.task, reader) for reader in flat]
        of_client_K, sums = unpack_activations(result.vector.cpu().double(), classes, [len(each) for each in channels])
        counts_K += of_client_K
        for total, count, held, sum_KC in zip(totals, counts, channels, sums, strict=True):
            total.index_add_(1, held, sum_KC)
            count.index_add_(1, held, of_client_K[:, None].expand_as(sum_KC))
        down, up = probing.downloads.bytes(result.task), wire.dense_size(result.vector.numel(), 0)
        ledger.charge(result.task.client, result.task.round, levels.work(result.task, down, result.report.passes, up))
        probing.downloads.note(result.task)
    means = iter([total / count.clamp(min=1.0) for total, count in zip(totals, counts, strict=True)])
    return counts_K, [torch.stack([next(means) for _ in each]).sum(0) for _, each in readers]


def _asked(module: FederatedModule, readers: Sequence[Reader], tasks: Sequence[Task]) -> Iterator[Result]:
    """Yield the clients' results, in the trainer's precision, which Lightning enters only in steps."""
    with module._precision_context():
        yield from module.round.probing.clients.run(partial(activations, readers=readers), tasks)


def _held(task: Task, reader: Reader) -> Tensor:
    """Return the channels that a layer reads in the net of a task, ascending; none if the net has no such layer."""
    if reader.tensor not in task.part:
        return torch.empty(0, dtype=torch.int64)
    positions = task.part[reader.tensor][reader.dim]
    if isinstance(positions, slice):
        positions = torch.arange(positions.start, positions.stop)
    return positions[:: reader.block] // reader.block
