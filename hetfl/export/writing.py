"""Export of the sub-model of a level to a file, which is read and compared before it replaces an earlier file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.export.adapter import ROUNDING, known_cluster, merged, plain, warn_of_personal
from hetfl.export.card import Card, Constructor, card_path
from hetfl.export.constructor import own_net
from hetfl.export.describing import describe
from hetfl.export.files import check_target
from hetfl.export.formats import Format
from hetfl.export.loading import format_of, read_whole
from hetfl.federation import FederatedModule
from hetfl.files import replacing, to_disk, write_whole
from hetfl.local.channels_last import without_layout
from hetfl.lora import LoRA
from hetfl.models.static_batch_norm import static_layers
from hetfl.tree import Tree, taken
from hetfl.types import NetFactory

SAMPLES = 64
"""Number of test samples on which the outputs of a file are compared with those of the framework."""


def export_submodel(module: FederatedModule, level: str, path: str | Path, cluster: int | None = None) -> Card:
    """Write the sub-model of a level to a file, and its description to a card beside it (``<path>.json``).

    The file is read like in :func:`hetfl.load`, and its outputs on test samples are compared with those of the
    framework: they must have the same bits for safetensors, and differ by at most 1e-5 for onnx. Then the file gets its
    name, and the card is written. Adapters (:class:`hetfl.lora.LoRA`) are merged: the file has the plain base.
    Of Ditto's two nets the file has the global one. Personal tensors have their initial values in the file, because
    each client keeps its own; a warning names them.

    Args:
        module: the federated module, after ``trainer.fit``, ``validate`` or ``test``; a score needs a test.
        level: name of the level.
        path: the file; its suffix is the format: ``.safetensors`` or ``.onnx``.
        cluster: number of the global model, if there are several.

    Returns:
        The card. With several global models it has no score, because a test covers all of them together.

    Raises:
        ConfigurationError: the level or format is unknown, a package is missing, static batch norm has no statistics,
            the format does not support the net, or the outputs differ.
        OSError: the file cannot be written.
    """
    path = Path(path)
    format = check_export(module, level, path)
    cluster = known_cluster(module, cluster)
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        submodel = present_submodel(module, level, cluster)
        warn_of_personal(module, submodel, path)
        net, constructor = standalone(module, level, submodel)
        batch_N = sample_batch(module, next(net.parameters()).dtype)
        content = format.encode(net, module.predict, taken(batch_N, torch.tensor([0, -1])))
        card = describe(module, level, net, constructor, path.name, content)
        reference = without_layout(submodel).cpu()
        if has_adapters := isinstance(reference, LoRA):
            expected = format.outputs(reference, module.predict, batch_N)
            compare_outputs(format.outputs(net, module.predict, batch_N), expected, ROUNDING, path)
        with replacing(path) as file:
            file.write(content)
            to_disk(file)
            factory = users_factory(module, card) if format.builds else None
            loaded = format.decode(read_whole(Path(file.name), card), card, factory)
            for inputs_N in (batch_N, taken(batch_N, slice(1))):
                expected = format.outputs(net if has_adapters else reference, module.predict, inputs_N)
                compare_outputs(loaded(inputs_N), expected, format.tolerance, path)
            # Both files are on the disk before one is renamed: if the disk is full, the earlier export stays unchanged.
            write_whole(card_path(path), card.to_json().encode())
    return card


def check_export(module: FederatedModule, level: str, path: Path) -> Format:
    """Return the format of a path, after all checks that need no test of the model.

    Raises:
        ConfigurationError: the level or format is unknown, a package is missing, or the file cannot be written.
    """
    format = format_of(path)
    if level not in module.levels:
        raise ConfigurationError(f"Expected a level in {list(module.levels)} but got {level!r}")
    format.require(writing=True)
    check_target(path)
    return format


def present_submodel(module: FederatedModule, level: str, cluster: int = 0) -> nn.Module:
    """Return the net of a level with the values and statistics of the current global model.

    Raises:
        ConfigurationError: static batch norm has no current statistics, or the module has no data.
    """
    try:
        data = module.data
    except RuntimeError:
        data = None
    if data is None:
        raise ConfigurationError("Expected a module that a trainer has trained or tested but got one without a trainer")
    submodel = module.submodel(level, cluster)
    if any(not layer.ready for layer in static_layers(submodel).values()) or (
        static_layers(submodel) and not module.statistics.current
    ):
        raise ConfigurationError(
            f"Expected static batch-norm statistics of the present model for level {level} but got none: "
            "run trainer.validate or trainer.test, which gather them for clusters that have clients"
        )
    return submodel


def standalone(module: FederatedModule, level: str, submodel: nn.Module) -> tuple[nn.Module, Constructor]:
    """Return a new net on the CPU with the values of a sub-model, adapters merged, and its constructor call."""
    return merged(module, level, submodel)


def sample_batch(module: FederatedModule, dtype: torch.dtype) -> Tree:
    """Return the first test samples in the form that nets of a dtype take, shape (N, ...)."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return module.data.transform.eval(taken(module.data.resident.all_test.inputs, slice(SAMPLES)))
    finally:
        torch.set_default_dtype(before)


def users_factory(module: FederatedModule, card: Card) -> NetFactory | None:
    """Return the constructor that a user must pass to :func:`hetfl.load`; None for nets of hetfl."""
    if own_net(card.net) is not None and card.net.arguments is not None:
        return None
    return lambda width=1.0, depth=None: plain(module.levels.build(card.level.name))


def compare_outputs(got: Tensor, expected: Tensor, tolerance: float, path: Path) -> None:
    """Refuse a file whose outputs differ from those of the framework.

    Raises:
        ConfigurationError: shapes differ, or an output differs by more than the tolerance.
    """
    allowed = tolerance * max(1.0, float(expected.abs().max()))
    if got.shape != expected.shape or not torch.allclose(got, expected, rtol=0.0, atol=allowed, equal_nan=True):
        difference = f"{float((got - expected).abs().max()):.3g}" if got.shape == expected.shape else tuple(got.shape)
        raise ConfigurationError(
            f"Expected the framework's outputs {tuple(expected.shape)} from {path} but got a difference of {difference}"
        )
