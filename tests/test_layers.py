"""The structure of the source: allowed imports, and the largest length of files and functions."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hetfl"

LAYERS = (
    {"printable"},
    {
        "errors",
        "seeding",
        "codes",
        "compiled",
        "permutation",
        "checksum",
        "collective",
        "signals",
        "importing",
    },
    {"arguments", "cores", "started", "factors", "files", "finite", "reading", "layout", "tree", "recipe", "rotation"},
    {"submodel", "question"},
    {"part"},
    {"types"},
    {"packing", "updates"},
    {"runs", "piece"},
    {"entries"},
    {"store", "objectives", "pruning", "value"},
    {
        *("aggregators", "clustering", "compression", "data", "defence", "fleet", "models", "selection", "wire"),
    },
    {"hooks", "lora"},
    {"attacks", "local"},
    {"levels", "accounting", "downlink", "trainer", "pruning.channels"},
    {"parts", "schedule", "global_models"},
    {"federation"},
    {"methods", "snapshots"},
    {"analysis", "display", "export", "flower", "report", "run_folder", "testing", "unlearning"},
    {"session"},
    {"cli"},
    {"compare", "flower.command"},
)
"""Modules and packages of hetfl from the bottom up. Each imports only from the layers below it."""

WITHIN_A_LAYER = {"report"}
"""Members of one layer that may import each other without cycles: a report uses display and analysis."""

FRONT_DOORS = {"hetfl", "hetfl.cli"}
"""Packages whose ``__init__.py`` re-exports from all layers."""

ALLOWED = {("compression", "wire")}
"""Error feedback encodes and decodes, since the residual is the part that the server does not decode."""


@cache
def source_files() -> list[Path]:
    """Return the source files of the package, including those behind the links."""
    folders = os.walk(PACKAGE, followlinks=True)
    return sorted(Path(folder, name) for folder, _, names in folders for name in names if name.endswith(".py"))


def unit_of(file: Path) -> str:
    """Return the module or package of hetfl that a file belongs to; "" for a re-exporting ``__init__.py``."""
    name = ".".join(("hetfl", *file.relative_to(PACKAGE).with_suffix("").parts))
    return "" if name.removesuffix(".__init__") in FRONT_DOORS else unit_named(name)


def unit_named(name: str) -> str:
    """Return the unit of a full name: the longest prefix that has a layer, else the name after ``hetfl.``."""
    first, second = (*name.split(".")[1:3], "")[:2]
    return f"{first}.{second}" if any(f"{first}.{second}" in layer for layer in LAYERS) else first


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported_names(file: Path) -> Iterator[str]:
    """Yield the full names of everything that a file imports from hetfl, at any place in the file."""
    for node in ast.walk(tree_of(file)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.startswith("hetfl."))


def imported_units(file: Path) -> Iterator[str]:
    """Yield the modules and packages of hetfl that a file imports."""
    yield from map(unit_named, imported_names(file))


UNITS = sorted({unit_of(file) for file in source_files()} - {""})


@cache
def dependencies() -> dict[str, set[str]]:
    """Return the other units that each unit imports."""
    graph: dict[str, set[str]] = {unit: set() for unit in UNITS}
    for file in source_files():
        if unit := unit_of(file):
            graph[unit] |= set(imported_units(file)) - {unit}
    return graph


def layer_of(unit: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if unit in layer)


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_has_a_layer(unit: str) -> None:
    assert sum(unit in layer for layer in LAYERS) == 1, f"add {unit} to LAYERS of {Path(__file__).name}"


@pytest.mark.parametrize("unit", UNITS)
def test_imports_only_go_down(unit: str) -> None:
    layer = layer_of(unit)
    free = LAYERS[layer] if LAYERS[layer] & WITHIN_A_LAYER else set()
    wrong = {
        other
        for other in dependencies()[unit]
        if other not in free and (unit, other) not in ALLOWED and layer_of(other) >= layer
    }
    assert not wrong, f"{unit} is in layer {layer} and imports {sorted(wrong)}, which are not below it"


def test_no_import_cycle() -> None:
    try:
        TopologicalSorter(dependencies()).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("package", ["federation", "levels", "local", "defence"])
def test_no_import_cycle_within_a_package(package: str) -> None:
    front = PACKAGE / package / "__init__.py"
    inside = [file for file in source_files() if PACKAGE / package in file.parents and file != front]
    files = {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file for file in inside
    }
    modules = {
        module: {part for name in imported_names(file) for part in (name[6:], name[6:].rpartition(".")[0])} - {module}
        for module, file in files.items()
    }
    try:
        TopologicalSorter({module: others & files.keys() for module, others in modules.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def classes() -> dict[str, ast.ClassDef]:
    return {node.name: node for file in source_files() for node in tree_of(file).body if isinstance(node, ast.ClassDef)}


def test_no_class_has_more_than_three_hetfl_ancestors() -> None:
    known = classes()

    def depth(name: str) -> int:
        bases = [base.id for base in known[name].bases if isinstance(base, ast.Name) and base.id in known]
        return 1 + max(map(depth, bases), default=0)

    assert {name: depth(name) for name in known if depth(name) > 4} == {}


def test_no_class_has_more_than_25_public_members() -> None:
    def members(node: ast.ClassDef) -> set[str]:
        names = {each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
        targets = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
        return {name for name in names if not name.startswith("_")}

    counts = {name: len(members(node)) for name, node in classes().items()}
    assert {name: count for name, count in counts.items() if count > 25} == {}


def test_the_round_module_is_short() -> None:
    lines = [len(file.read_text(encoding="utf-8").splitlines()) for file in (PACKAGE / "federation").glob("*.py")]
    assert sum(lines) <= 2800, "move code that a round does not need into another package"


def test_a_wrong_import_is_detected(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("import hetfl.cli\ndef f():\n    from hetfl import wire\n    from hetfl.data.split import x, y\n")
    assert sorted(imported_units(file)) == ["cli", "data", "data", "wire"]


def function_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines of a function without its docstring."""
    docstring = function.body[0] if ast.get_docstring(function) is not None else None
    docstring_lines = (
        docstring.end_lineno - docstring.lineno + 1 if docstring is not None and docstring.end_lineno else 0
    )
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1 - docstring_lines


@pytest.mark.parametrize("file", source_files(), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_files_and_functions_are_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    functions = [node for node in ast.walk(tree_of(file)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert {node.name: function_lines(node) for node in functions if function_lines(node) > 40} == {}
