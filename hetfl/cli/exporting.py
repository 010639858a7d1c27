"""Where ``hetfl export`` writes, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hetfl.display.formats import format_quantity
from hetfl.errors import ConfigurationError
from hetfl.export import FORMATS, Card
from hetfl.headline import Headline

FormatName = Literal["safetensors", "pt2", "onnx"]


def export_target(level: str, format: FormatName | None, out: str | None, checkpoint: str | None) -> Path:
    """Return the file to write.

    Args:
        level: name of the level.
        format: the format; None: the one that ``out`` ends in, else safetensors.
        out: a file with the suffix of a format, or a folder; None: ``export`` in the run's folder.
        checkpoint: the run's checkpoint, in a folder inside the run's.

    Raises:
        ConfigurationError: ``out`` ends in another format, or in something that is none.

    >>> export_target("c", None, "phone.onnx", None).as_posix()
    'phone.onnx'
    >>> export_target("c", "pt2", None, "run/checkpoints/last.ckpt").as_posix()
    'run/export/c.pt2'
    """
    if out is not None and not Path(out).is_dir() and (suffix := Path(out).suffix.removeprefix(".")) in FORMATS:
        if format not in (None, suffix):
            raise ConfigurationError(f"Expected --out to end in .{format}, as --format {format} says, but got {out}")
        return Path(out)
    if out == "" or (out is not None and not Path(out).is_dir() and Path(out).suffix):
        raise ConfigurationError(
            f"Expected --out to be a folder or to end in {', '.join(f'.{name}' for name in FORMATS)} but got {out!r}"
        )
    run = Path() if checkpoint is None else Path(checkpoint).parent.parent
    return (run / "export" if out is None else Path(out)) / f"{level}.{format or 'safetensors'}"


def export_line(path: Path, card: Card, headline: Headline) -> str:
    """Return what was written, in one line; the headline is the exported module's."""
    size = format_quantity(path.stat().st_size, "B")
    column = headline.column("test")
    score = "" if card.score is None else f", test {headline.words} {headline.shown(card.score[column])}"
    return f"{'exported':<18}{path} (level {card.level.name}, {card.parameters:,} parameters, {size}{score})"
