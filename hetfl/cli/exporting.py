"""The target and the output of ``hetfl export``."""

from __future__ import annotations

from pathlib import Path

from hetfl.display.formats import format_quantity
from hetfl.errors import ConfigurationError
from hetfl.export import Card
from hetfl.runs.headline import Headline


def export_target(level: str, format: str | None, out: str | None, checkpoint: str | None) -> Path:
    """Return the file to write.

    Args:
        level: name of the level.
        format: the format; None: the suffix of ``out``, or else safetensors.
        out: a file with the suffix of a format, or a folder; None: ``export`` in the run folder.
        checkpoint: the checkpoint of the run, in the folder ``checkpoints`` of the run folder.

    Raises:
        ConfigurationError: the suffix of ``out`` is another format, or ``out`` is empty.

    >>> export_target("c", None, "phone.onnx", None).as_posix()
    'phone.onnx'
    >>> export_target("c", "onnx", None, "run/checkpoints/last.ckpt").as_posix()
    'run/export/c.onnx'
    """
    if out == "":
        raise ConfigurationError("Expected --out to be a file or a folder but got ''")
    if out is not None and not Path(out).is_dir() and (suffix := Path(out).suffix.removeprefix(".")):
        if format not in (None, suffix):
            raise ConfigurationError(f"Expected --out to end in .{format}, as --format {format} says, but got {out}")
        return Path(out)
    run = Path() if checkpoint is None else Path(checkpoint).parent.parent
    return (run / "export" if out is None else Path(out)) / f"{level}.{format or 'safetensors'}"


def export_line(path: Path, card: Card, headline: Headline) -> str:
    """Return one line about an exported file.

    Args:
        path: the file.
        card: its card.
        headline: the headline of the exported module.
    """
    size = format_quantity(path.stat().st_size, "B")
    column = headline.column("test")
    score = "" if card.score is None else f", test {headline.words} {headline.shown(card.score[column])}"
    return f"{'exported':<18}{path} (level {card.level.name}, {card.parameters:,} parameters, {size}{score})"
