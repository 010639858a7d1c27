"""The notebooks run, show their figures, and are stored with the outputs of their present code."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.notebook_runs import FOLDER, KEY, LEFT_OUT, agreement, code_of, digest, execute, keep_outputs, read, text_of

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LINES_OF_A_CELL = 45
LARGEST = 900_000
"""Bytes of a notebook."""
FIGURES = {
    "01_first_run": 3,
    "02_width_vs_depth": 2,
    "03_anatomy_of_submodels": 11,
    "04_value_of_data": 1,
    "05_inside_submodels": 10,
    "06_ranks": 1,
}
"""The figures of each notebook."""


def shows_a_figure(cell: nbformat.NotebookNode) -> bool:
    """Return whether the last statement of a cell shows a figure."""
    body = ast.parse(re.sub(r"^%.*", "", cell.source, flags=re.MULTILINE)).body
    return bool(body) and re.match(r"(analysis\.)?plot_", ast.unparse(body[-1])) is not None


def test_there_are_six_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == [*FIGURES]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_with_the_outputs_of_its_code(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info", KEY}
    assert notebook.metadata.language_info == {"name": "python"}, "the reader's Python is not the writer's"
    assert notebook.metadata[KEY] == {"code": digest(notebook)}, "the code has changed: make notebooks"
    assert path.stat().st_size < LARGEST
    for cell in code_of(notebook):
        assert cell.execution_count is None
        assert cell.metadata == {}, "neither when a cell was run, nor how it was folded"
        texts = [text_of(output) for output in cell.outputs]
        assert texts.count("image") == shows_a_figure(cell)
        assert not any(LEFT_OUT.search(text) or "/tmp" in text for text in texts), "neither times nor paths"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_short_cells_and_explanations(path: Path) -> None:
    notebook = read(path)
    cells = notebook.cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    parameters, *rest = code_of(notebook)
    assert "os.environ.get" in parameters.source
    assert not any("os.environ" in cell.source for cell in rest), "parameters are in the first code cell"
    for before, cell in itertools.pairwise(cells):
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= LINES_OF_A_CELL
            assert len(re.findall(r"plot_\w+\(", cell.source)) <= 1, "one figure a cell"
            assert "hetfl._" not in cell.source
        if cell.cell_type == "code" and shows_a_figure(cell) and "heads" not in cell.source:
            assert before.cell_type == "markdown", "every figure has words before it"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_fresh_run_has_the_stored_outputs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    variables = {"HETFL_RUNS": str(work / "runs"), "IPYTHONDIR": str(home), "JUPYTER_RUNTIME_DIR": str(home)}
    for name, value in ({"OMP_NUM_THREADS": "1"} | variables).items():
        monkeypatch.setenv(name, value)  # the kernel inherits the variable
    for name in ("HETFL_ROUNDS", "HETFL_CLIENTS", "HETFL_SEED", "HETFL_SEEDS"):
        monkeypatch.delenv(name, raising=False)
    notebook = read(path)
    execute(notebook, work)
    for cell in code_of(notebook):
        errors = [output.text for output in cell.outputs if output.get("name") == "stderr"]
        assert errors == [], f"warnings below a cell: {cell.source}"
    keep_outputs(notebook)
    # Another processor rounds sums differently, and a training amplifies that.
    assert agreement(read(path), notebook) >= 0.8
    images = [text_of(output) for cell in code_of(notebook) for output in cell.outputs].count("image")
    assert images == FIGURES[path.stem]
    assert [each.name for each in work.iterdir()] == ["runs"], "run folders are made only in the configured folder"
    assert all((folder / "metrics.csv").is_file() for folder in (work / "runs").glob("*/*"))


def test_outputs_are_compared_by_their_numbers() -> None:
    def stored(text: str) -> Any:
        output = nbformat.v4.new_output("stream", name="stdout", text=f"{text}\nround 1  elapsed 2 s\n")  # type: ignore[no-untyped-call]
        cell = nbformat.v4.new_code_cell("print()", outputs=[output])  # type: ignore[no-untyped-call]
        notebook = nbformat.v4.new_notebook(cells=[cell])  # type: ignore[no-untyped-call]
        keep_outputs(notebook)
        return notebook

    assert stored("a 1 000 kB").cells[0].outputs[0].text == "a 1 000 kB\n"
    assert agreement(stored("level a 97.2 %"), stored("level a 92.0 %")) == 1
    assert agreement(stored("a 97.2 % b 5"), stored("a 50.0 % b 5")) == 0.5
    with pytest.raises(AssertionError, match="other outputs than stored"):
        agreement(stored("level a 1"), stored("level b 1"))
