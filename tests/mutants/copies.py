"""Copies of the project in which one file is changed at a time; the original is never written to."""

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
"""Names in the root folder that are not copied."""


def copied(root: Path, target: Path) -> None:
    """Copy and compile a project; symbolic links stay links, and built files are left out."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        left_out = LEFT_OUT if Path(folder) == root else set()
        return {name for name in names if name in left_out | {"__pycache__"} or name.endswith((".egg-info", ".ckpt"))}

    shutil.copytree(root, target, symlinks=True, ignore=ignored)
    compileall.compile_dir(target, quiet=2, workers=1)


@contextmanager
def changed(file: Path, text: str, number: int) -> Iterator[None]:
    """Replace the text of a file in a copy, and restore it at the end.

    Python recognises a compiled file by the source's size and modification time in whole seconds. So each change gets a
    different time.

    Args:
        file: the file to change.
        text: the new text.
        number: number of the change; it must differ between changes.
    """
    before, times = file.read_bytes(), file.stat()
    file.write_text(text, encoding="utf-8")
    os.utime(file, (times.st_atime, int(times.st_mtime) + number + 1))
    try:
        yield
    finally:
        file.write_bytes(before)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
