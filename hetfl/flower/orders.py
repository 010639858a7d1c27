"""Orders of the server to nodes: the tasks, the sub-models, and the states that clients go on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from hetfl import wire
from hetfl.entries import gather_flat
from hetfl.federation import FederatedModule
from hetfl.flower.limits import received
from hetfl.flower.messages import Order
from hetfl.flower.states import StateBook
from hetfl.part import Part
from hetfl.types import SHARED, Task
from hetfl.updates import DenseUpdate


def orders_of(module: FederatedModule, book: StateBook, tasks: Sequence[Task]) -> list[Order]:
    """Return the orders of tasks; a sub-model that several clients get is encoded once.

    Args:
        module: the server's module.
        book: names the state of each client.
        tasks: the tasks.
    """
    models: dict[tuple[int, bytes], bytes] = {}
    orders = []
    for task in tasks:
        part = _encoded(module, task.part, task.level)
        order = Order(task, b"", part, book.present(task.client), book.keep(task.client))
        if module.downlink.codes:
            orders.append(_with_codes(module, order))
            continue
        if (key := (task.model, task.part.key)) not in models:
            tensors = module.models.tensors[task.model]
            with torch.no_grad():
                values_D = gather_flat(tensors, received(module, task.part))
            models[key] = wire.encode(DenseUpdate(values_D), round=task.round, client=task.model)
        orders.append(replace(order, model=models[key]))
    return orders


def _with_codes(module: FederatedModule, order: Order) -> Order:
    """Return an order with the coded values of its part, or of the larger part that they are in."""
    task, broadcast, source_level = order.task, module.downlink, ""
    if task.source:
        blocks, layout = module.levels.indices, task.source.layout
        source_level = next(level for level, block in blocks.items() if block.layout == layout)
    messages = broadcast.sent(task, task.source or task.part).messages
    return replace(
        order,
        model=messages.get(task.model, b""),
        shared=messages.get(SHARED, b""),
        source=_encoded(module, task.source, source_level) if source_level else b"",
        source_level=source_level,
    )


def _encoded(module: FederatedModule, part: Part, level: str) -> bytes:
    return wire.encode_part(part, module.levels.indices[level], module.levels.whole)
