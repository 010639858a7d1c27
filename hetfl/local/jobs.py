"""The jobs of one client: local training, sums for static batch norm, losses, and gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from hetfl.data import Samples
from hetfl.local.bench import Bench
from hetfl.local.executor import Result
from hetfl.local.training import batches, cut
from hetfl.models.static_batch_norm import StaticStatistics, gathering, static_layers
from hetfl.seeding import derive, generator, seed_torch
from hetfl.tree import Tree, moved, on_device, taken
from hetfl.types import Report, Task

PLAIN_BATCH = 500
"""Samples in a batch of a pass without training."""


def train(bench: Bench, task: Task) -> Result:
    r"""Run E epochs of SGD from the client's part of the global model, with the penalty; the result is the delta.

    .. math:: \Delta_k = \theta_k - \theta[\text{index}]
    """
    resident, local = bench.resident(task), bench.problem.local
    resident.start(task.lr, bench.beyond(task))
    ctx = bench.context(task, on_device(bench.data.labels(task.client), bench.device))
    method, net = bench.problem.method, resident.net.train()
    method.before_client(net, ctx)
    seed_torch(_seed(bench, task), bench.device)  # dropout draws from torch's global generator
    total, counted, passes, steps = torch.zeros((), device=bench.device), 0.0, 0, 0
    for inputs, targets in training_batches(bench, task):
        loss = method.local_loss(net, (moved(inputs, bench.device), on_device(targets, bench.device)), ctx)
        resident.backward(loss)
        resident.penalise(local.regulariser, task.memory_D)
        if local.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(resident.vector, local.gradient_clip)
        resident.step(local.regulariser, task.lr)
        weight = method.objective.weight(targets)
        total, counted = total + loss.detach() * weight, counted + weight
        method.after_step(net, ctx)
        passes, steps = passes + len(targets), steps + 1
        ctx = replace(ctx, step=steps)
    report = report_of(bench, task, total.item() / (counted or 1.0), passes, steps)
    report = replace(report, extras=method.after_client(net, ctx))
    return Result(task, report, resident.finish())


def report_of(bench: Bench, task: Task, loss: float, passes: int, steps: int = 0) -> Report:
    """Return a client's report.

    Args:
        bench: has the client's data.
        task: the client's task.
        loss: mean loss over all samples passed.
        passes: number of samples passed through the net.
        steps: number of optimizer steps.
    """
    samples = len(bench.data.client_data(task.client).targets)
    return Report(task.client, task.level, samples, loss, lr=task.lr, model=task.model, passes=passes, steps=steps)


def training_batches(bench: Bench, task: Task) -> Iterator[tuple[Tree, Tensor]]:
    """Yield inputs and targets of every step of a client's local training.

    All random choices come from one generator per client and round, in the order of the steps.
    """
    local, data = bench.problem.local, bench.data.client_data(task.client)
    random = torch.Generator().manual_seed(_seed(bench, task))
    epochs = (batches(len(data.targets), local.batch_size, random) for _ in range(task.epochs or local.epochs))
    for batch in islice((batch for epoch in epochs for batch in epoch), task.steps):
        inputs = bench.data.transform.train(taken(data.inputs, batch), random)
        yield bench.problem.method.objective.batch(inputs, data.targets[batch], random)


def _seed(bench: Bench, task: Task) -> int:
    return derive(bench.problem.seed, "local", task.round, task.client)


def statistics(bench: Bench, task: Task) -> Result:
    """Run one pass over the client's data, and sum the batch means and variances of every static norm layer.

    The result's vector has, for each layer in turn, the sum of means (C,), the sum of variances (C,) and the number of
    batches; :func:`unpack_statistics` reads it.
    """
    resident = bench.resident(task)
    data = bench.data.client_data(task.client)
    resident.start()
    random = generator(bench.problem.seed, "statistics", task.round, task.client)
    with torch.no_grad(), gathering(resident.net) as layers:
        for batch in batches(len(data.targets), bench.problem.local.batch_size, random):
            resident.net(moved(bench.data.transform.train(taken(data.inputs, batch), random), bench.device))
        vector = pack_statistics(layer.sums for layer in layers.values() if layer.sums)
    return Result(task, report_of(bench, task, 0.0, len(data.targets)), vector)


def plain_batches(
    bench: Bench, task: Task, purpose: str, samples: int | None = None, split: Samples = "train"
) -> Iterator[tuple[tuple[Tree, Tensor], float]]:
    """Yield batches of a client's samples without augmentation, on the device, and the weight of each batch.

    Dropout follows the same seed as the order of the samples: torch's global generator gets it before the first batch.

    Args:
        bench: has the client's data.
        task: the client and round.
        purpose: of the pass, which chooses the random numbers.
        samples: number of the client's samples, drawn at random; None: all.
        split: the client's samples to pass.
    """
    data, objective = bench.data.client_data(task.client, split), bench.problem.method.objective
    random = generator(bench.problem.seed, purpose, task.round, task.client)
    seed_torch(random.initial_seed(), bench.device)
    for batch in cut(torch.randperm(len(data.targets), generator=random)[:samples], PLAIN_BATCH):
        inputs = bench.data.transform.eval(taken(data.inputs, batch))
        inputs, targets = objective.batch(inputs, data.targets[batch], random)
        yield (moved(inputs, bench.device), on_device(targets, bench.device)), objective.weight(targets)


def losses(bench: Bench, task: Task, samples: int | None) -> Result:
    """Compute the mean loss of the sub-model before local training, on a client's data or on a random part of it.

    The net is in training mode, for the Scaler and for norm layers without statistics; samples are not augmented.

    Args:
        bench: the resident nets.
        task: the client, level, round and model.
        samples: number of the client's samples, drawn at random; None: all.
    """
    resident, method = bench.resident(task), bench.problem.method
    resident.start(beyond_D=bench.beyond(task))
    ctx = bench.context(task, on_device(bench.data.labels(task.client), bench.device))
    net = resident.net.train()
    total, counted, passes = torch.zeros((), dtype=torch.float64, device=bench.device), 0.0, 0
    with torch.no_grad():
        for (inputs, targets), weight in plain_batches(bench, task, "losses", samples):
            total += weight * method.loss(net(inputs), targets, ctx).double()
            counted, passes = counted + weight, passes + len(targets)
    return Result(task, report_of(bench, task, total.item() / (counted or 1.0), passes), torch.empty(0))


def gradients(bench: Bench, task: Task, samples: int | None) -> Result:
    """Compute the mean gradient of the sub-model before local training, of held entries and of others.

    The net is in training mode; samples are not augmented. Entries that the client does not hold are zero.

    Args:
        bench: the resident nets.
        task: the client, level, round and model.
        samples: number of the client's samples, drawn at random; None: all.
    """
    resident, method = bench.resident(task), bench.problem.method
    resident.start(beyond_D=bench.beyond(task))
    ctx = bench.context(task, on_device(bench.data.labels(task.client), bench.device))
    net = resident.net.train()
    assert resident.vector.grad is not None
    total_D, counted, passes = torch.zeros_like(resident.vector.grad), 0.0, 0
    for batch_N, weight in plain_batches(bench, task, "gradients", samples):
        resident.backward(method.local_loss(net, batch_N, ctx))
        total_D.add_(resident.vector.grad, alpha=weight)
        counted, passes = counted + weight, passes + len(batch_N[1])
    resident.finish()
    return Result(task, report_of(bench, task, 0.0, passes), total_D / (counted or 1.0))


def pack_statistics(sums: Iterable[StaticStatistics]) -> Tensor:
    """Return the sums of static norm layers as one vector, which :func:`unpack_statistics` reads."""
    return torch.cat([part for s in sums for part in (s.mean_C, s.var_C, s.mean_C.new_full((1,), s.batches))])


def unpack_statistics(net: torch.nn.Module, vector: Tensor) -> dict[str, StaticStatistics]:
    """Return the sums of each static norm layer of ``net``, read from the vector of :func:`statistics`."""
    sums, position = {}, 0
    for name, layer in static_layers(net).items():
        channels = layer.weight.numel()
        mean_C, var_C, count = vector[position : position + 2 * channels + 1].split([channels, channels, 1])
        sums[name] = StaticStatistics(mean_C, var_C, int(count))
        position += 2 * channels + 1
    return sums
