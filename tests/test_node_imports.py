"""What the process of a node imports: every package takes memory on a small device."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("flwr", reason="hetfl flower needs Flower: pip install 'hetfl[flower]'")

NEEDLESS = {"alembic", "jinja2", "pandas", "sklearn", "sqlalchemy", "hetfl.analysis", "hetfl.report"}
"""Packages of figures, reports, clusterings and of Flower's databases."""


def test_a_node_imports_no_package_that_only_a_server_or_a_figure_needs() -> None:
    code = f"import sys, hetfl.flower.command.warm; sys.exit(str({NEEDLESS} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
