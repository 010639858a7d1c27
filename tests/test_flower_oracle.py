"""The comparisons in the tests with real processes can fail: they detect one changed bit and the lost updates."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

import torch

from hetfl.flower.states import ClientState, ClientStates
from tests.flower_federations import assert_same_residual, lost_updates


@pytest.mark.parametrize("wrong", ["", "a bit", "a sign of zero", "a name", "a shape", "nothing kept"])
def test_a_different_residual_is_detected(tmp_path: Path, wrong: str) -> None:
    block = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    ClientStates(tmp_path).save("0" * 32, 1, ClientState(0, {"residual/w": block}))
    (file,) = tmp_path.glob("*/*.safetensors")
    expected = {
        "": {"w": block},
        "a bit": {"w": block.nextafter(torch.tensor(9.0))},
        "a sign of zero": {"w": torch.tensor([[-0.0, 1.0], [2.0, 3.0]])},
        "a name": {"v": block},
        "a shape": {"w": block.flatten()},
        "nothing kept": {},
    }[wrong]
    if not wrong:
        assert_same_residual(file, expected)
        return
    with pytest.raises(AssertionError):
        assert_same_residual(file, expected)


def test_a_repeated_round_counts_as_in_its_last_repetition() -> None:
    first = (
        "Round 2: no update of client 4: no answer within 30 s\n"
        "Round 3: no update of client 5: no answer within 30 s\n"
        "Round 3: update of client 6 at level a refused: bytes\n"
        "Round 3: no statistics of client 7: no answer within 30 s\n"
    )
    assert lost_updates({0: first}) == {(1, 4), (2, 5), (2, 6)}
    assert lost_updates({0: first, 2: "Round 4: no update of client 8: gone\n"}) == {(1, 4), (3, 8)}
