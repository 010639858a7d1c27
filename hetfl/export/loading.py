"""Back from a file to a net."""

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
"""Formats by name, which is their files' suffix."""


def load(path: str | Path, net: NetFactory | None = None) -> nn.Module:
    """Return the sub-model of an exported file, on the CPU and in evaluation mode.

    The card (``<path>.json``) must lie beside the file. No code that a file might hold is run: without ``net``
    only nets of :mod:`hetfl.models` are made.

    Args:
        path: a file that :func:`hetfl.export.export_submodel` or ``hetfl export`` wrote.
        net: for safetensors, what makes the net where it is none of hetfl's own: the ``net`` of the federated module,
            called with the level's width and depth.

    Returns:
        Of a safetensors file the net itself; of an onnx file a module that predicts: float batches (N, ...), normalised
        as the card says, to logits (N, K).

    Raises:
        ConfigurationError: file or card are missing, damaged or not what they should be; the net needs ``net``; a
            package is missing.
    """
    path = Path(path)
    if not path.exists() and not card_path(path).exists():
        raise ConfigurationError(f"Expected an exported file but got {path}, which is not there")
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
    """Return the bytes of a file, which must be those that its card describes.

    Raises:
        ConfigurationError: they are not, or the file cannot be read.
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
    """Return the format that a file's suffix names.

    Raises:
        ConfigurationError: it names none.
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
