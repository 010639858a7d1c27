"""Memory of a client with adapters: the global model, and what the client's net holds beside it.

``python benchmarks/lora_memory.py`` trains a client of a Transformer with adapters for a step, with AdamW, and prints
the bytes of all tensors that exist then, activations apart: the frozen base, the adapters of the global model, and
those of the client's net with anchor, gradients and the optimizer's two moments.
"""

from __future__ import annotations

import argparse
import gc
import warnings
from functools import partial

import torch
from torch import Tensor
from torch.optim import AdamW

from hetfl import Level
from hetfl.levels.level_set import LevelSet
from hetfl.local.resident import ResidentNet
from hetfl.lora import LoRA
from hetfl.models import Transformer
from hetfl.submodel import frozen_of, parameters_of, state_of


def tensor_bytes() -> int:
    """Return the bytes of the distinct storages of all tensors."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # isinstance() looks into deprecated attributes of some modules
        tensors = [each for each in gc.get_objects() if isinstance(each, Tensor)]
    tensors += [each.grad for each in tensors if each.is_leaf and each.grad is not None]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(storages.values())


def count(tensors: dict[str, Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    given = parser.parse_args()
    base = partial(Transformer, 2000, channels=given.channels, feed_forward=4 * given.channels, layers=given.layers)
    net = partial(LoRA, partial(base, pooling="none"), ["*attention.*", "*feed_forward.*"], given.rank)
    levels = LevelSet(net, {"a": Level(rank=given.rank)}, seed=0)
    whole = state_of(levels.net)
    frozen, trained = count(dict(frozen_of(levels.net))), count(parameters_of(levels.net))
    levels_alone = tensor_bytes()
    resident = ResidentNet(levels.build("a"), AdamW)
    resident.anchor(whole, levels.indices["a"], (0, 0))
    resident.start(1e-3)
    resident.backward(resident.net(torch.zeros(2, 16, dtype=torch.long)).square().mean())
    resident.optimizer.step()
    after = tensor_bytes()
    print(f"frozen base                    {frozen / 1e6:8.2f} MB")
    print(f"trained adapters               {trained / 1e6:8.2f} MB")
    print(f"all tensors before a client    {levels_alone / 1e6:8.2f} MB")
    print(f"all tensors while it trains    {after / 1e6:8.2f} MB")
    print(f"a client, in adapters          {(after - levels_alone) / trained:8.2f}")


if __name__ == "__main__":
    main()
