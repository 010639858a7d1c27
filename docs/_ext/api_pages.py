"""A page of the reference for every package of hetfl that has an interface (``__all__``), written before each build.

A name that several packages export is described on one page, that of the package nearest to its source; the pages of
the others link to it.
"""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent.parent


def names_of(module: ModuleType) -> list[str]:
    """Return the names that a package exports and keeps: some packages import theirs anew at each use."""
    exported = [name for name in getattr(module, "__all__", ()) if hasattr(module, name)]
    return [name for name in exported if name in vars(module)]


def interfaces() -> dict[str, list[str]]:
    """Return the names that each package exports, in the order of the alphabet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages: list[str] = project["tool"]["setuptools"]["packages"]
    with_modules = sorted(name for name in packages if (ROOT / name.replace(".", "/") / "__init__.py").is_file())
    exported = {name: names_of(import_module(name)) for name in with_modules}
    return {name: names for name, names in exported.items() if names}


def home(package: str, name: str, exported: dict[str, list[str]]) -> str:
    """Return the package on whose page a name is described."""
    source = getattr(getattr(import_module(package), name), "__module__", package)
    holders = [each for each in exported if name in exported[each] and f"{source}.".startswith(f"{each}.")]
    return max(holders, key=len, default=package)


def page(package: str, exported: dict[str, list[str]]) -> str:
    """Return the page of one package: its docstring, its names, and links to those that have another page."""
    homes = {name: home(package, name, exported) for name in exported[package]}
    own = [name for name, where in homes.items() if where == package]
    lines = [package, "=" * len(package), "", f".. automodule:: {package}", "   :imported-members:"]
    lines += [f"   :members: {', '.join(own)}", ""] if own else [""]
    others = [f":py:obj:`{where}.{name}`" for name, where in homes.items() if where != package]
    lines += ["Also here: " + ", ".join(others) + ".", ""] if others else []
    return "\n".join(lines)


def write_pages(app: Sphinx) -> None:
    """Write the pages that are new or have changed, and delete those of packages that are gone."""
    folder, exported = Path(app.srcdir) / "api", interfaces()
    pages = {f"{package}.rst": page(package, exported) for package in exported}
    for path in folder.glob("*.rst"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def keep_bars(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape the bars of magnitudes such as |x|, which reStructuredText would take for names of substitutions."""
    formula = False
    for number, line in enumerate(lines):
        formula = line.lstrip().startswith(".. math::") or (formula and line.startswith(" "))
        if not formula:
            pieces = line.split("`")
            lines[number] = "`".join(text if code % 2 else text.replace("|", r"\|") for code, text in enumerate(pieces))


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages when a build begins."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", keep_bars)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
