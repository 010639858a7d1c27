"""The notebooks run in a small setting, show their figures, and are stored without outputs."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = {"HETFL_ROUNDS": "2", "HETFL_CLIENTS": "12", "OMP_NUM_THREADS": "1"}
LINES_OF_A_CELL = 45
FIGURES = {
    "01_first_run": 3,
    "02_width_vs_depth": 2,
    "03_anatomy_of_submodels": 11,
    "04_value_of_data": 1,
    "06_ranks": 1,
}
"""The figures of each notebook."""


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shows_a_figure(cell: Any) -> bool:
    """Return whether the last line of a cell shows a figure."""
    return re.match(r"(analysis\.)?plot_", cell.source.splitlines()[-1]) is not None


def test_there_are_five_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == [*FIGURES]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in code_of(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
        assert cell.metadata == {}, "neither when a cell was run, nor how it was folded"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}, "the reader's Python is not the writer's"


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
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    folders = {"HETFL_RUNS": str(work / "runs"), "IPYTHONDIR": str(home), "JUPYTER_RUNTIME_DIR": str(home)}
    for name, value in (SMALL | folders).items():
        monkeypatch.setenv(name, value)  # the kernel inherits the variable
    notebook = read(path)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": work}}).execute()
    figures = 0
    for cell in code_of(notebook):
        errors = [output.text for output in cell.outputs if output.get("name") == "stderr"]
        assert errors == [], f"warnings below a cell: {cell.source}"
        images = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        assert len(images) == shows_a_figure(cell)
        figures += len(images)
    assert figures == FIGURES[path.stem]
    assert [each.name for each in work.iterdir()] == ["runs"], "run folders are made only in the configured folder"
    assert all((folder / "metrics.csv").is_file() for folder in (work / "runs").glob("*/*"))
