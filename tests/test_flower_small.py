"""A node on a small device: it trains level e of a federation like MNIST's within 1 GiB."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

import flower_small

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc")]

ROUNDS = 2
GIBIBYTE = 2**30 / 1024 / 1000
"""In the unit of the samples, 1,000 KiB."""


def test_a_node_trains_level_e_within_a_gibibyte(tmp_path: Path) -> None:
    """Memory is sampled: a test cannot make a control group, and RLIMIT_DATA counts pages that are never touched."""
    flower_small.write_images(tmp_path)
    peaks, _ = flower_small.rounds_of_a_node(tmp_path, ROUNDS)
    assert any(name.endswith("flower-supernode") for name in peaks.peak)
    assert peaks.total < GIBIBYTE
    (table,) = tmp_path.glob("heterofl_mnist/*/metrics.csv")
    assert len(table.read_text().splitlines()) > ROUNDS
    log = (tmp_path / "states" / "node.log").read_text()
    assert all(f"round {round}: clients" in log for round in (1, ROUNDS))
