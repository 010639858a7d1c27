"""The installed package has exactly the files of the tree."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = ("hetfl", "models", "aggregators", "configs")
LINKS = ("models", "aggregators", "configs")
"""Top-level folders that are installed inside hetfl."""


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command; only ``path`` is added to Python's search path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def installed_names() -> set[str]:
    """Return the installed paths of the tree's modules, configurations and templates."""
    # rglob does not follow links
    files = [file for folder in FOLDERS for suffix in ("py", "yaml") for file in (ROOT / folder).rglob(f"*.{suffix}")]
    files += (ROOT / "hetfl").rglob("templates/*")
    names = (file.relative_to(ROOT).as_posix() for file in files)
    return {f"hetfl/{name}" if name.startswith(LINKS) else name for name in names} | {"hetfl/py.typed"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a source distribution from a copy of the tree, and the wheel from it, so that links cannot help."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tree / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tree)
    built = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=tree)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_contains_exactly_the_tree(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    described = {name for name in names if name.startswith("hetfl-0.1.0.dist-info/")}
    assert names - described == installed_names()
    assert "hetfl-0.1.0.dist-info/licenses/LICENSE" in described


def test_the_wheel_installs_the_command(wheel: Path) -> None:
    entry_points = zipfile.ZipFile(wheel).read("hetfl-0.1.0.dist-info/entry_points.txt").decode()
    assert "hetfl = hetfl.cli:main" in entry_points.splitlines()
    assert "hetfl/cli/__init__.py" in zipfile.ZipFile(wheel).namelist()


@pytest.fixture(scope="module")
def target(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a new folder; its dependencies are those of this environment."""
    target = tmp_path_factory.mktemp("target")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    installed = run(*pip, "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=target)
    assert installed.returncode == 0, installed.stderr
    return target


@pytest.mark.slow
def test_the_installed_wheel_is_imported_without_the_tree(target: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        "import hetfl, hetfl.models, hetfl.aggregators as a; print(hetfl.__file__, hetfl.models.__file__, a.__file__)"
    )
    imported = run(sys.executable, "-c", code, cwd=elsewhere, path=target)
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.split() == [
        str(target / "hetfl" / package / "__init__.py") for package in ("", "models", "aggregators")
    ]
    command = run(target / "bin" / "hetfl", "--help", cwd=elsewhere, path=target)
    assert command.returncode == 0, command.stderr
    assert "usage: hetfl" in command.stdout


@pytest.mark.slow
def test_the_installed_wheel_creates_trains_and_compares_projects(target: Path, tmp_path: Path) -> None:
    def hetfl(*args: str) -> str:
        done = run(target / "bin" / "hetfl", *args, cwd=tmp_path, path=target)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "method/fedprox" in hetfl("configs")
    assert hetfl("init").endswith("hetfl fit -c project.yaml\n")
    assert "runs/project" in hetfl("fit", "-c", "project.yaml", "--trainer.max_epochs=2", "--plots=false")
    shared = "base,data/digits"
    contenders = (
        "-r",
        "own=project.yaml",
        "-r",
        f"prox={shared},method/fedprox",
        "-r",
        f"rolex={shared},method/fedrolex",
    )
    small = ["--data.num_clients=10", "--data.partitioner.beta=2", "--data.partitioner.min_samples=3"]
    small += ["--trainer.max_epochs=2", "--model.net.hidden=[8, 8]", "--model.selection.clients_per_round=3"]
    assert "report.html" in hetfl("compare", *contenders, *small, "--mixed_data", "--out", "comparison")
    assert {path.parent.parent.name for path in tmp_path.glob("comparison/runs/*/seed_0/metrics.csv")} == {
        *("own", "prox", "rolex")
    }


@pytest.mark.parametrize("package", ["models", "aggregators"])
def test_a_second_name_of_a_package_is_refused(package: str) -> None:
    imported = run(sys.executable, "-c", f"import {package}", cwd=ROOT)
    assert imported.returncode == 1
    last_line = imported.stderr.strip().splitlines()[-1]
    assert re.fullmatch(rf"ImportError: Expected .*hetfl\.{package}.* but got '{package}'.*", last_line)


@pytest.mark.parametrize("package", LINKS)
def test_links_and_package_mapping_agree(package: str) -> None:
    assert os.readlink(ROOT / "hetfl" / package) == f"../{package}"
    assert PROJECT["tool"]["setuptools"]["package-dir"][f"hetfl.{package}"] == package


def test_every_package_is_listed() -> None:
    modules = (Path(name) for name in installed_names() if name.endswith(".py"))
    packages = {module.parent.as_posix().replace("/", ".") for module in modules} | {"hetfl.configs"}
    assert PROJECT["tool"]["setuptools"]["packages"] == sorted(packages)


def requirements(*extras: str) -> dict[str, Requirement]:
    """Return the project's requirements by canonical name, with those of some extras."""
    texts = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        texts += PROJECT["project"]["optional-dependencies"][extra]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, texts)}


def test_every_import_is_a_declared_dependency() -> None:
    distributions = importlib.metadata.packages_distributions()
    imported = set()
    for file in (file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                imported.add(node.module.partition(".")[0])
    needed = {name: distributions.get(name, []) for name in imported - sys.stdlib_module_names - {"hetfl"}}
    declared = set(requirements("fast", "flower", "onnx"))
    assert not {name for name, owners in needed.items() if not declared & set(map(canonicalize_name, owners))}


def test_constraints_pin_every_direct_dependency_within_its_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    required = requirements("dev", "tensorboard")
    assert sorted(map(canonicalize_name, pins)) == sorted(required)
    assert all(required[canonicalize_name(name)].specifier.contains(version) for name, version in pins.items())
