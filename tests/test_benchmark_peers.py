"""Other packages in the benchmarks: their results are compared, and missing packages are reported."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from bare import BareLoop
from peers import check_peer, installed_peers
from round import Federation, local_rounds
from torch import Tensor
from work import Setting, Work, bare_loop

from hetfl.local import Sequential

SMALL = Setting("d", clients=4, cohort=2, samples=11, batch_size=5, epochs=2, hidden=(16, 32), size=8)


def start() -> BareLoop:
    federation = Federation(SMALL, SMALL.data(), Sequential())
    return bare_loop(SMALL, federation.data, federation.models.tensors[0])


class Honest:
    """Computes the bare loop's result times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        self.bare, self.factor, self.closed = start(), factor, False

    def round(self, work: Sequence[Work]) -> list[list[Tensor]]:
        return self.bare.round(work)

    def total(self, trained: Any) -> Tensor:
        return self.factor * torch.stack([torch.cat([each.flatten() for each in delta]) for delta in trained]).sum(0)

    def close(self) -> None:
        self.closed = True


def test_a_peer_with_equal_results_is_timed_and_closed() -> None:
    peer = Honest()
    timings = local_rounds(
        SMALL, {"Sequential": Sequential}, num_threads=1, blocks=1, peers={"honest": lambda setting, tensors: peer}
    )
    assert [row.side for row in timings][-2:] == ["Sequential", "honest"]
    assert peer.closed


def test_a_peer_with_different_results_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"Expected Honest to make the bare loop's deltas"):
        check_peer(SMALL, Honest(factor=1.001), start())


def test_peers_that_are_not_installed_are_listed_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("peers.find_spec", lambda name: None)
    assert installed_peers(2) == {}
    first, second = capsys.readouterr().err.splitlines()
    assert first == "pfl is not installed and is left out: pip install 'pfl==0.6.0'"
    assert second.startswith("Flower's simulation is not installed and is left out")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", ["pfl", "ray"])
def test_an_installed_peer_equals_the_bare_loop(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(module)
    monkeypatch.setattr("peers.find_spec", lambda name: find_spec(name) if name == module else None)
    (make,) = installed_peers(1).values()
    bare = start()
    with closing(make(SMALL, bare.slices["d"])) as peer:
        check_peer(SMALL, peer, bare)
