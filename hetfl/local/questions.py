"""The job of a client that answers a question about its data."""

from __future__ import annotations

import torch
from torch import Tensor

from hetfl.data import Samples
from hetfl.local.bench import Bench
from hetfl.local.executor import Result
from hetfl.local.jobs import plain_batches, report_of
from hetfl.question import ClientView, Question
from hetfl.seeding import generator
from hetfl.types import Task


def answer(bench: Bench, task: Task, question: Question) -> Result:
    """Compute a client's answer; the result's vector has its numbers in the models' dtype, in which they travel.

    Args:
        bench: the resident nets.
        task: the client, level, round and model.
        question: the question.
    """
    random = generator(bench.problem.seed, type(question).__name__, task.round, task.client)
    dtype = next(iter(bench.models[task.model].values())).dtype
    split: Samples = "validation" if question.held_out else "train"
    batches = (batch for batch, _ in plain_batches(bench, task, "questions", split=split))
    classes, samples = len(bench.data.labels(task.client)), len(bench.data.client_data(task.client, split).targets)
    if not question.uses_model:
        numbers = question.answer(ClientView(batches, classes, random))
        return Result(task, report_of(bench, task, 0.0, 0), numbers.to(dtype))
    resident = bench.resident(task)
    resident.start(beyond_D=bench.beyond(task))

    def gradient(loss: Tensor) -> Tensor:
        resident.backward(loss)
        assert resident.vector.grad is not None
        return resident.vector.grad

    with torch.set_grad_enabled(question.backward):
        part = bench.part(task)
        held = {} if part.mask_D is None else dict(part.layout.views(part.mask_D))
        numbers = question.answer(ClientView(batches, classes, random, resident.net.train(), gradient, held))
    resident.finish()
    return Result(task, report_of(bench, task, 0.0, samples * question.passes), numbers.to(dtype))
