"""Copies of the project in which one file is changed at a time; the project itself is never written to."""

from __future__ import annotations

import compileall
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEFT_OUT = {
    *(".git", ".venv", "runs", "data", "build", "dist", ".mutants"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"),
}
"""What is not copied from the root."""


def copied(root: Path, target: Path) -> None:
    """Copy a project: its links as links, without what is built, and compile it."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        left_out = LEFT_OUT if Path(folder) == root else set()
        return {name for name in names if name in left_out | {"__pycache__"} or name.endswith((".egg-info", ".ckpt"))}

    shutil.copytree(root, target, symlinks=True, ignore=ignored)
    compileall.compile_dir(target, quiet=2, workers=1)


@contextmanager
def changed(file: Path, text: str, number: int) -> Iterator[None]:
    """Give a file of a copy another text, and its own back at the end.

    Compiled files know their source by its size and its time in whole seconds, so each change gets a time of its own.

    Args:
        file: the file.
        text: its other text.
        number: of the change, different for each.
    """
    before, times = file.read_bytes(), file.stat()
    file.write_text(text, encoding="utf-8")
    os.utime(file, (times.st_atime, int(times.st_mtime) + number + 1))
    try:
        yield
    finally:
        file.write_bytes(before)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
