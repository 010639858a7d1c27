"""Leaves out modules whose optional package is missing: the search for doctests imports every module."""

from importlib.util import find_spec

OPTIONAL = {
    "flwr": ["hetfl/flower/*", "tests/hostile_node.py"],
    "numba": ["hetfl/compression/kernels.py", "hetfl/wire/kernels.py"],
}
collect_ignore_glob = [file for package, files in OPTIONAL.items() if find_spec(package) is None for file in files]
