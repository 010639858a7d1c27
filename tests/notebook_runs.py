"""Runs notebooks and keeps what a reader should see: ``python -m tests.notebook_runs``, which ``make notebooks`` calls.

Times, paths, identifiers and numbers of executions are left out of the stored outputs, so that two runs with the same
numbers store the same files. A digest of the code tells whether outputs are those of the present cells.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
KEY = "hetfl"
"""The entry of a notebook's metadata with the digest of its code."""
LEFT_OUT = re.compile(
    r"^.*(?:\bround +\d+/\d+|\bclients: |elapsed|run folder|wall time|\d{4}-\d\d-\d\d_).*\n?", re.MULTILINE
)
"""Lines of printed text with times, paths, and how many processes the machine has."""
STYLER_ID = re.compile(r"T_[0-9a-f]{5}")
"""Random identifiers in styled tables."""
NUMBER = re.compile(r"[-−]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")


def read(path: Path) -> Any:
    """Return a notebook."""
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def code_of(notebook: Any) -> list[Any]:
    """Return the cells with code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook: Any) -> str:
    """Return a digest of the code of a notebook."""
    return hashlib.sha256("\n\0".join(cell.source for cell in code_of(notebook)).encode()).hexdigest()


def execute(notebook: Any, work: Path) -> None:
    """Run all cells of a notebook in a folder; its kernel inherits the environment."""
    work.mkdir(parents=True, exist_ok=True)
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": work}}).execute()


def _stored(output: Any) -> Any | None:
    if output.output_type == "stream":
        output.text = LEFT_OUT.sub("", output.text)
        return output if output.text.strip() else None
    if output.output_type == "display_data" and LEFT_OUT.search(text_of(output)):
        return None  # a line of progress
    if output.output_type == "execute_result":
        output.execution_count = None
    output.metadata = nbformat.from_dict({})  # type: ignore[no-untyped-call]
    if "text/html" in output.data:
        output.data["text/html"] = STYLER_ID.sub("T_00000", output.data["text/html"])
        output.data.pop("text/plain", None)  # a styled table has its address in memory there
    if "image/png" in output.data:
        output.data.pop("text/plain", None)
    return output


def keep_outputs(notebook: Any) -> None:
    """Leave in a notebook that was run what is stored."""
    for cell in code_of(notebook):
        cell.execution_count, cell.metadata = None, nbformat.from_dict({})  # type: ignore[no-untyped-call]
        cell.outputs = [kept for kept in map(_stored, cell.outputs) if kept is not None]
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata[KEY] = {"code": digest(notebook)}


def text_of(output: Any) -> str:
    """Return the text of an output; an image has its kind."""
    if output.output_type == "stream":
        return str(output.text)
    return "image" if "image/png" in output.data else str(output.data.get("text/html", output.data.get("text/plain")))


def agreement(one: Any, other: Any) -> float:
    """Return the share of the numbers of two notebooks' outputs that agree within a tenth, or two hundredths.

    Without numbers, in a notebook of figures alone, all agree.

    Raises:
        AssertionError: the outputs differ in something else than numbers.
    """
    agreeing, total = 0, 0
    for first, second in zip(code_of(one), code_of(other), strict=True):
        texts = [[text_of(output) for output in cell.outputs] for cell in (first, second)]
        shapes = [[NUMBER.sub("#", text) for text in each] for each in texts]
        assert shapes[0] == shapes[1], f"other outputs than stored: {first.source}"
        numbers = [
            [float(number.replace(",", "").replace("−", "-")) for text in each for number in NUMBER.findall(text)]
            for each in texts
        ]
        for a, b in zip(*numbers, strict=True):
            agreeing += abs(a - b) <= 0.1 * max(abs(a), abs(b)) + 0.02
            total += 1
    return agreeing / total if total else 1.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run notebooks, and store them with their outputs."""
    parser = argparse.ArgumentParser(description="Run notebooks and store their outputs.")
    parser.add_argument("names", nargs="*", help="names without suffix; all by default")
    names = parser.parse_args(arguments).names or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HETFL_RUNS"] = str(Path(folder) / "runs")
        for name in names:
            path = FOLDER / f"{name}.ipynb"
            notebook = read(path)
            execute(notebook, Path(folder) / name)
            keep_outputs(notebook)
            nbformat.write(notebook, path)  # type: ignore[no-untyped-call]
            print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
