"""From a federation to a file: one level's sub-model, stand-alone, read back and compared before it gets its name."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.export.card import Card, Constructor, card_path
from hetfl.export.constructor import construct, own_net
from hetfl.export.describing import describe
from hetfl.export.files import check_target
from hetfl.export.formats import Format
from hetfl.export.loading import format_of, read_whole
from hetfl.export.tensors import copied, fill
from hetfl.federation import FederatedModule
from hetfl.files import replacing, to_disk, write_whole
from hetfl.local.channels_last import without_layout
from hetfl.models.static_batch_norm import static_layers
from hetfl.tree import Tree, taken
from hetfl.types import NetFactory

SAMPLES = 64
"""Test samples on which a file is compared with the framework."""


def export_submodel(module: FederatedModule, level: str, path: str | Path, cluster: int | None = None) -> Card:
    """Write a level's sub-model to a file, and what it is to a card beside it (``<path>.json``).

    The file is read back as :func:`hetfl.load` does, and its outputs on test samples are compared with the framework's:
    the same bits for safetensors, 1e-5 for onnx. Only then does it take its name, and the card is written.

    Args:
        module: the federated module, after ``trainer.fit``, ``validate`` or ``test``; a test makes the score known.
        level: name of the level.
        path: the file; its suffix is the format: ``.safetensors`` or ``.onnx``.
        cluster: whose global model, if there are several.

    Returns:
        The card; of one of several models it says no score, for a test is of all of them together.

    Raises:
        ConfigurationError: no such level or format, a missing package, no statistics for static batch norm, a net that
            the format cannot hold, or other outputs.
        OSError: the file cannot be written.
    """
    path = Path(path)
    format = check_export(module, level, path)
    cluster = known_cluster(module, cluster)
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        submodel = present_submodel(module, level, cluster)
        net, constructor = standalone(module, level, submodel)
        batch_N = sample_batch(module, next(net.parameters()).dtype)
        content = format.encode(net, module.predict, taken(batch_N, torch.tensor([0, -1])))
        card = describe(module, level, net, constructor, path.name, content)
        reference = without_layout(submodel).cpu()
        with replacing(path) as file:
            file.write(content)
            to_disk(file)
            factory = users_factory(module, card) if format.builds else None
            loaded = format.decode(read_whole(Path(file.name), card), card, factory)
            for inputs_N in (batch_N, taken(batch_N, slice(1))):
                compare_outputs(loaded(inputs_N), format.outputs(reference, module.predict, inputs_N), format, path)
            # Both are on the disk before either takes its name: a full disk leaves the export before as it was.
            write_whole(card_path(path), card.to_json().encode())
    return card


def check_export(module: FederatedModule, level: str, path: Path) -> Format:
    """Return the format that a path names, after a check of all that can be known before a test.

    Raises:
        ConfigurationError: no such level or format, a missing package, or a place where no file can be written.
    """
    format = format_of(path)
    if level not in module.levels:
        raise ConfigurationError(f"Expected a level in {list(module.levels)} but got {level!r}")
    format.require(writing=True)
    check_target(path)
    return format


def known_cluster(module: FederatedModule, cluster: int | None) -> int:
    """Return the number of the cluster that is meant.

    Raises:
        ConfigurationError: there are several models and none was named, or the one that was is none of them.
    """
    count = len(module.models)
    if cluster is None and count == 1:
        return 0
    if cluster is None or not 0 <= cluster < count:
        raise ConfigurationError(f"Expected a cluster from 0 to {count - 1} to export but got {cluster}")
    return cluster


def present_submodel(module: FederatedModule, level: str, cluster: int = 0) -> nn.Module:
    """Return a level's net with the present global model's values and statistics.

    Raises:
        ConfigurationError: it has no static batch-norm statistics, or the module has no data.
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
            "trainer.validate or trainer.test gather them, for clusters that have clients"
        )
    return submodel


def standalone(module: FederatedModule, level: str, submodel: nn.Module) -> tuple[nn.Module, Constructor]:
    """Return a new net on the CPU with a sub-model's values, and what made it."""
    net, constructor = construct(lambda: module.levels.build(level))
    net.to(next(submodel.parameters()).dtype)
    fill(net, copied(submodel))
    return net.eval().requires_grad_(False), constructor


def sample_batch(module: FederatedModule, dtype: torch.dtype) -> Tree:
    """Return the first test samples as nets of a dtype get them, shape (N, ...)."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return module.data.transform.eval(taken(module.data.resident.all_test.inputs, slice(SAMPLES)))
    finally:
        torch.set_default_dtype(before)


def users_factory(module: FederatedModule, card: Card) -> NetFactory | None:
    """Return the constructor that :func:`hetfl.load` will be given: none for hetfl's own nets."""
    if own_net(card.net) is not None and card.net.arguments is not None:
        return None
    return lambda width=1.0, depth=None: module.levels.build(card.level.name)


def compare_outputs(got: Tensor, expected: Tensor, format: Format, path: Path) -> None:
    """Refuse a file that does not give what the framework gives.

    Raises:
        ConfigurationError: an output is further off than the format's tolerance.
    """
    allowed = format.tolerance * max(1.0, float(expected.abs().max()))
    if got.shape != expected.shape or not torch.allclose(got, expected, rtol=0.0, atol=allowed, equal_nan=True):
        difference = f"{float((got - expected).abs().max()):.3g}" if got.shape == expected.shape else tuple(got.shape)
        raise ConfigurationError(
            f"Expected the framework's outputs {tuple(expected.shape)} from {path} but got a difference of {difference}"
        )
