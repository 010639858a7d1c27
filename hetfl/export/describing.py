"""The contents of a card: the origin of a sub-model, its data, its score."""

from __future__ import annotations

import hashlib
import inspect
import math
from dataclasses import replace
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

import hetfl
from hetfl.data import FederatedDataModule, Transform
from hetfl.export.card import Card, Constructor, plain
from hetfl.export.constructor import class_path
from hetfl.federation import FederatedModule
from hetfl.tree import Tree, taken


def describe(
    module: FederatedModule, level: str, net: nn.Module, constructor: Constructor, file: str, content: bytes
) -> Card:
    """Return the card of a file.

    Args:
        module: the federated module with the sub-model.
        level: name of the level.
        net: the sub-model.
        constructor: its constructor call.
        file: name of the file.
        content: bytes of the file.
    """
    parameters = list(net.parameters())
    return Card(
        file=file,
        sha256=hashlib.sha256(content).hexdigest(),
        level=replace(module.levels[level], rank=None),  # adapters are merged
        method=class_path(type(module)),
        rounds=module.models.version,
        net=constructor,
        parameters=sum(parameter.numel() for parameter in parameters),
        dtype=str(parameters[0].dtype).removeprefix("torch."),
        input=sample_description(module.data),
        classes=module.data.num_classes,
        score=measured_score(module, level),
        hetfl=hetfl.__version__,
    )


def sample_description(data: FederatedDataModule) -> dict[str, Any]:
    """Return shape and dtype of a raw sample, and the transform of raw batches.

    With several inputs, ``tensors`` replaces shape and dtype: it has both for each input, in a list or by name.
    """
    described = _described(taken(data.resident.all_test.inputs, 0))
    single = isinstance(data.resident.all_test.inputs, Tensor)
    return {**(described if single else {"tensors": described}), "normalisation": normalisation(data.transform)}


def _described(sample: Tree) -> Any:
    if isinstance(sample, dict):
        return {str(name): _described(value) for name, value in sample.items()}
    if isinstance(sample, tuple | list):
        return [_described(value) for value in sample]
    return {"shape": list(sample.shape), "dtype": str(sample.dtype).removeprefix("torch.")}


def normalisation(transform: Transform) -> dict[str, Any] | None:
    """Return class and arguments of a transform; None if an argument is no attribute of the same name, or not plain.

    >>> from hetfl.data import Plain
    >>> normalisation(Plain())
    {'class': 'hetfl.data.Plain', 'arguments': {}}
    """
    names = inspect.signature(type(transform)).parameters
    try:
        arguments = {name: plain(getattr(transform, name)) for name in names}
    except (AttributeError, TypeError):
        return None
    return {"class": class_path(type(transform)), "arguments": arguments}


def measured_score(module: FederatedModule, level: str) -> dict[str, float] | None:
    """Return the headline of a level in the last test, and its number of samples.

    The key of the headline is its column, such as ``test/accuracy`` or ``test/r2``. The result is None if the last
    action of the trainer was not a test, if there are several global models, or if the score is not finite.
    """
    trainer, data, headline = module.trainer, module.data, module.objective.headline
    value = trainer.callback_metrics.get(headline.column("test", level))
    if trainer.state.fn != TrainerFn.TESTING or value is None or len(module.models) > 1:
        return None
    if not math.isfinite(value):
        return None
    # limit_test_batches may have shortened the test.
    samples = min(len(data.resident.all_test), int(trainer.num_test_batches[0]) * data.eval_batch_size)
    return {headline.column("test"): value.item(), "samples": samples}
