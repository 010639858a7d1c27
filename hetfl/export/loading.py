"""Loading of exported files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import nn

from hetfl.errors import ConfigurationError
from hetfl.export.card import Card, card_path, read_card
from hetfl.export.formats import Format
from hetfl.export.onnx_graph import Onnx
from hetfl.export.tensors import Safetensors
from hetfl.types import NetFactory

FORMATS: dict[str, Format] = {format.name: format for format in (Safetensors(), Onnx())}
"""Formats by name, which is also the suffix of files."""


def load(path: str | Path, net: NetFactory | None = None) -> nn.Module:
    """Return the sub-model of an exported file, on the CPU and in evaluation mode.

    The card (``<path>.json``) must be in the same folder. No code from the file is run: without ``net`` only nets of
    :mod:`hetfl.models` are built.

    Args:
        path: a file that :func:`hetfl.export.export_submodel` or ``hetfl export`` wrote.
        net: only for safetensors files: the class of a net that is not one of hetfl, which gets the arguments in the
            card. If the card has none, or for another constructor, such as ``functools.partial``: the ``net`` of the
            federated module, which is called with the width and depth of the level.

    Returns:
        The net for a safetensors file. For an onnx file, a module that maps float batches (N, ...), normalised as
        described in the card, to logits (N, K).

    Raises:
        ConfigurationError: file or card are missing, damaged or invalid; ``net`` is needed; a package is missing.
    """
    path = Path(path)
    if not path.exists() and not card_path(path).exists():
        raise ConfigurationError(f"Expected an exported file but got {path}, which does not exist")
    card = read_card(card_path(path))
    data, format = read_whole(path, card), format_of(card.file)
    if net is not None and not format.builds:
        raise ConfigurationError(
            f"Expected no net for {path} but got one: a {format.name} file holds the whole prediction"
        )
    try:
        return format.decode(data, card, net)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error} ({path})") from None


def read_whole(path: Path, card: Card) -> bytes:
    """Return the bytes of a file after a check of the digest in its card.

    Raises:
        ConfigurationError: the digest is wrong, or the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"Expected an exported file in {path} but got: {error.strerror}") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != card.sha256:
        raise ConfigurationError(
            f"Expected the SHA-256 digest {card.sha256:.12}... of its card for {path} but got {digest:.12}...: it is "
            "damaged, or another file"
        )
    return data


def format_of(file: str | Path) -> Format:
    """Return the format of a file by its suffix.

    Raises:
        ConfigurationError: the suffix is not that of a format.
    """
    suffix = Path(file).suffix
    if suffix == ".pt2":
        raise ConfigurationError(
            f"Expected a file ending in .onnx (the prediction) or .safetensors (the net) but got {file}: "
            "pt2 files were of earlier versions"
        )
    if suffix.removeprefix(".") not in FORMATS:
        raise ConfigurationError(
            f"Expected a file ending in {', '.join(f'.{name}' for name in FORMATS)} but got {file}"
        )
    return FORMATS[suffix.removeprefix(".")]
