"""Freed memory is kept for later tensors."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from hetfl.local import heap

SCRIPT = """
import ctypes, resource, runpy, sys, torch
heap = runpy.run_path(sys.argv[1])  # without the rest of the package, which takes seconds to import

# Whether the end of the heap is returned depends on its contents; separately mapped blocks are always returned.
if hasattr(ctypes.CDLL(None), "mallopt"):
    ctypes.CDLL(None).mallopt(heap["M_MMAP_THRESHOLD"], 2**20)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        parts = [torch.ones(5 * 2**20) for _ in range(3)]  # 20 MiB each: under the largest block
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
kept = heap["keep_freed_memory"]()
faults()
print(before, faults(), kept)
"""


def measured(**settings: str) -> tuple[int, int, bool]:
    """Return, from a subprocess, page faults of the same work before and after, and the function's result."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("MALLOC_") and n != "GLIBC_TUNABLES"}
    output = subprocess.run(
        [sys.executable, "-c", SCRIPT, heap.__file__],
        env=environment | settings,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return int(output[0]), int(output[1]), output[2] == "True"


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="a C library without these settings")
def test_freed_pages_are_reused() -> None:
    before, after, kept = measured()
    assert kept
    assert before > 20 * 5 * 2**22 // os.sysconf("SC_PAGE_SIZE")  # each repetition maps at least one of three blocks
    assert after < before / 50


@pytest.mark.parametrize(
    "settings",
    [
        {"MALLOC_TRIM_THRESHOLD_": "4096"},
        pytest.param({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=4096"}, marks=pytest.mark.slow),
    ],
)
def test_malloc_settings_of_the_environment_are_kept(settings: dict[str, str]) -> None:
    before, after, kept = measured(**settings)
    assert not kept
    assert after > before / 2


def test_another_c_library_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not heap.keep_freed_memory()
