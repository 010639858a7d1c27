"""Conversion of Python inputs to trees of tensors; sequences of different lengths are padded."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from hetfl.data.arrays import ArrayLike, as_tensor
from hetfl.errors import ConfigurationError
from hetfl.tree import Tree, divided, in_words, mapped


@dataclass(frozen=True)
class Padding:
    """How sequences of different lengths become one tensor.

    Args:
        value: the value behind the end of a shorter sequence; None: all sequences must have the same length.
        mask: whether a net gets ``{"tokens": padded, "mask": mask}``, the mask bool (n, T), True within a sequence.

    Raises:
        ConfigurationError: ``mask`` is set without ``value``, or ``value`` is not finite.
    """

    value: float | None = None
    mask: bool = False

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            raise ConfigurationError(f"Expected a finite number as pad, or null, but got {self.value}")
        if self.mask and self.value is None:
            raise ConfigurationError(
                "Expected pad, the value behind the end of a sequence, with pad_mask: true but got null"
            )


def as_inputs(values: Any, where: str, leaf: Callable[[Any, str], Tensor] = as_tensor) -> Tree:
    """Return inputs as a tree of tensors; a dict, or a tuple that contains an array, is several inputs.

    Args:
        values: an array, a table, a column or nested lists of numbers, or a tuple or dict of these.
        where: what the values are, for messages.
        leaf: converts a value that is not a tuple or a dict to a tensor.

    Raises:
        ConfigurationError: a value is not numeric.
    """
    if isinstance(values, dict):
        return {name: as_inputs(value, f"{where} {name!r}", leaf) for name, value in values.items()}
    if _is_several(values):
        return tuple(as_inputs(value, f"{where} {number}", leaf) for number, value in enumerate(values))
    return leaf(values, where)


def _is_several(values: Any) -> bool:
    return isinstance(values, dict) or (
        isinstance(values, tuple) and any(_is_several(value) or getattr(value, "ndim", 0) for value in values)
    )


def train_and_test(train: ArrayLike, test: ArrayLike, padding: Padding) -> tuple[Tree, Tree]:
    """Return training and test inputs, both padded to the longest sequence of both if ``padding`` has a value.

    Raises:
        ConfigurationError: a value is not numeric, or cannot be padded.
    """
    if padding.value is None:
        return as_inputs(train, "training inputs"), as_inputs(test, "test inputs")
    return stack_both(_sequences(train, "training"), _sequences(test, "test"), padding)


def _sequences(values: ArrayLike, where: str) -> list[Tensor]:
    if _is_several(values):
        raise ConfigurationError(
            f"Expected a list of sequences as {where} inputs with pad but got a {type(values).__name__}: use "
            "DatasetData with one such input per sample"
        )
    if getattr(values, "ndim", 1) > 1:
        return list(as_tensor(values, f"{where} inputs"))
    if not hasattr(values, "__iter__"):
        raise ConfigurationError(f"Expected a list of sequences as {where} inputs but got {type(values).__name__}")
    return [as_tensor(row, f"the input at {where} position {position}") for position, row in enumerate(values)]


def stack(samples: Sequence[Tree], padding: Padding, where: str) -> Tree:
    """Return samples stacked along a new first dimension, as one tree.

    Args:
        samples: trees of the same structure.
        padding: pads tensors of different lengths; with a mask each sample must be one sequence.
        where: what the samples are, for messages.

    Raises:
        ConfigurationError: samples differ in structure, differ in shape without padding, or are not sequences.
    """
    if padding.mask:
        for sample in samples:
            if not isinstance(sample, Tensor) or not sample.dim():
                raise ConfigurationError(
                    f"Expected {where} of one sequence a sample with pad_mask: true but got {in_words(sample)}"
                )
        lengths = torch.tensor([len(sample) for sample in samples])
        tokens = _column(samples, padding.value, where)
        return {"tokens": tokens, "mask": torch.arange(tokens.shape[1]) < lengths[:, None]}
    try:
        return mapped(lambda *rows: _column(rows, padding.value, where), *samples)
    except ValueError as error:
        raise ConfigurationError(f"Expected {where} of one structure: {error}") from None


def stack_both(train: Sequence[Tree], test: Sequence[Tree], padding: Padding) -> tuple[Tree, Tree]:
    """Return training and test samples as one tree each; sequences are padded to the longest of both.

    Raises:
        ConfigurationError: as :func:`stack`.
    """
    if padding.value is None:
        return stack(train, padding, "training inputs"), stack(test, padding, "test inputs")
    first, second = divided(stack([*train, *test], padding, "inputs"), [len(train), len(test)])
    return first, second


def stack_targets(targets: Sequence[Tensor], where: str) -> Tensor:
    """Return targets as one tensor; targets with one entry give shape (n,), and integers become int64.

    Raises:
        ConfigurationError: the targets differ in shape.
    """
    rows = [target.reshape(()) for target in targets] if all(target.numel() == 1 for target in targets) else targets
    stacked: Tensor = stack(rows, Padding(), f"{where} targets")
    return stacked if stacked.is_floating_point() else stacked.long()


def pixels_or_numbers(value: Any, where: str) -> Tensor:
    """Return a PIL image as uint8 (C, height, width), or an array or list of numbers as a tensor."""
    return pil_to_tensor(value) if isinstance(value, Image.Image) else as_tensor(value, where)


def _column(rows: Sequence[Tensor], pad: float | None, where: str) -> Tensor:
    """Return tensors as the rows of one tensor, whose type can hold all of them."""
    wanted = {row.dtype for row in rows if row.numel()} or {row.dtype for row in rows}  # [] has no meaningful type
    dtype = functools.reduce(torch.promote_types, sorted(wanted, key=str))
    shapes = {row.shape for row in rows}
    if pad is None or rows[0].dim() == 0:
        for position, row in enumerate(rows):
            if row.shape != rows[0].shape:
                raise ConfigurationError(
                    f"Expected {where} of one shape, {tuple(rows[0].shape)}, but got {tuple(row.shape)} at position "
                    f"{position}{': set pad' if row.dim() and pad is None else ''}"
                )
        return torch.stack([row.to(dtype) for row in rows])
    items = {shape[1:] for shape in shapes if shape.numel()} or {rows[0].shape[1:]}
    if len(items) > 1 or any(not shape for shape in shapes):
        raise ConfigurationError(
            f"Expected {where} as sequences (length, ...) that differ only in length, as pad is set, but got shapes "
            f"{', '.join(str(tuple(shape)) for shape in sorted(shapes)[:3])}"
        )
    _check_pad(pad, dtype, where)
    length = max(len(row) for row in rows)
    padded = torch.full((len(rows), length, *items.pop()), pad, dtype=dtype)
    for row, values in zip(padded, rows, strict=True):
        if len(values):
            row[: len(values)] = values
    return padded


def _check_pad(pad: float, dtype: torch.dtype, where: str) -> None:
    """Refuse a value that a type does not hold."""
    if dtype == torch.bool:
        least, most, wanted = 0.0, 1.0, "0 or 1"
    elif dtype.is_floating_point:
        least, most, wanted = torch.finfo(dtype).min, torch.finfo(dtype).max, "a number"
    else:
        least, most, wanted = torch.iinfo(dtype).min, torch.iinfo(dtype).max, "a whole number"
    if not least <= pad <= most or (not dtype.is_floating_point and pad != int(pad)):
        raise ConfigurationError(
            f"Expected {wanted} from {least:g} to {most:g} as pad, for {where} of {dtype}, but got {pad}"
        )
