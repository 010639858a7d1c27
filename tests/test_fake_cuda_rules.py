"""The card that is not there refuses and waits where torch's fake tensors, which have no values, do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn import functional as F

from tests.fake_cuda import CARD, MixedDevices, fake_card

Make = Callable[..., Tensor]


def whole(*values: int) -> Tensor:
    return torch.tensor(values)


MIXED: dict[str, Callable[[Make, Make], object]] = {
    "two of the card": lambda card, host: card(3, 4) + card(3, 4),
    "a matrix": lambda card, host: card(3, 4) + host(3, 4),
    "a number": lambda card, host: card(3, 4) * host(()),
    "a product": lambda card, host: card(3, 4) @ host(4, 2),
    "joined": lambda card, host: torch.cat([card(3), host(2)]),
    "stacked": lambda card, host: torch.stack([card(3), host(3)]),
    "chosen": lambda card, host: torch.where(card(3) > 0, card(3), host(3)),
    "chosen by a mask of the CPU": lambda card, host: torch.where(host(3) > 0, card(3), card(3)),
    "index": lambda card, host: card(5)[whole(0, 2)],
    "index_select": lambda card, host: card(5).index_select(0, whole(0, 2)),
    "gather": lambda card, host: card(5).gather(0, whole(0, 2)),
    "index_add_": lambda card, host: card(5).index_add_(0, card(2).long(), host(2)),
    "copy_": lambda card, host: card(5).copy_(host(5)),
    "_foreach_copy_": lambda card, host: torch._foreach_copy_([card(5)], [host(5)]),
    "add_": lambda card, host: host(5).add_(card(5)),
    "searchsorted": lambda card, host: torch.searchsorted(card(5), host(2)),
    "convolution": lambda card, host: F.conv2d(card(1, 1, 4, 4), host(2, 1, 3, 3)),
    "embedding": lambda card, host: F.embedding(whole(0, 1), card(3, 2)),
    "layer norm": lambda card, host: F.layer_norm(card(2, 3), (3,), host(3)),
    "cross entropy": lambda card, host: F.cross_entropy(card(2, 3), whole(0, 1)),
    "masked_fill": lambda card, host: card(3).masked_fill(host(3) > 0, 0.0),
}

WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.any()),
    "float": lambda x: float(x.sum()),
    "tolist": lambda x: x.tolist(),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "mask": lambda x: x[x > 0],
    "unique": lambda x: x.unique(),
    "repeats": lambda x: x.repeat_interleave(x.long()),
    "repeats of a known sum": lambda x: x.repeat_interleave(x.long(), output_size=6),
    "shape": lambda x: len(x) + x.numel(),
    "device": lambda x: x.device == CARD and x.is_cuda,
    "sum": lambda x: x.sum() + 1.0,
}


@pytest.mark.parametrize("operation", MIXED.values(), ids=MIXED)
def test_the_card_refuses_what_fake_tensors_refuse(operation: Callable[[Make, Make], object]) -> None:
    make: Callable[..., Tensor] = torch.zeros
    with fake_card():
        try:
            operation(partial(make, device="cuda"), make)
            refused = False
        except MixedDevices:
            refused = True
    with FakeTensorMode():
        if refused:
            with pytest.raises(RuntimeError):
                operation(partial(make, device="cuda"), make)
        else:
            operation(partial(make, device="cuda"), make)


@pytest.mark.parametrize("operation", WAITS.values(), ids=WAITS)
def test_the_card_waits_where_fake_tensors_have_no_answer(operation: Callable[[Tensor], object]) -> None:
    with fake_card() as card:
        operation(torch.ones(6, device="cuda"))
    with FakeTensorMode():
        if card.waits:
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                operation(torch.ones(6, device="cuda"))
        else:
            operation(torch.ones(6, device="cuda"))


def test_copies_between_the_devices_wait_unless_they_are_asynchronous() -> None:
    with fake_card() as card:
        tensor = torch.arange(4.0)
        there = tensor.pin_memory().to(CARD, non_blocking=True)
        assert (there.device, tensor.device.type, there.new_zeros(2).device) == (CARD, "cpu", CARD)
        assert not card.waits
        back = tensor.to("cuda").cpu()
        tensor.to("cuda", non_blocking=True)  # not pinned
        torch.tensor([1.0], device=CARD)
        assert {kind: n for (kind, _), n in card.waits.items()} == {"copy to the card": 3, "copy from the card": 1}
        assert back.tolist() == [0.0, 1.0, 2.0, 3.0]
        drawn = partial(torch.rand, 2, generator=torch.Generator(), device="cuda")
        for refused in (there.numpy, drawn, lambda: tensor[there.long()]):  # fake tensors let the last one pass
            with pytest.raises(MixedDevices):
                refused()
