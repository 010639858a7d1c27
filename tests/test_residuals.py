"""Residual stores: which files there are, and for how long."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from hetfl.compression import DiskResiduals, MemoryResiduals, ResidualStore
from hetfl.errors import ConfigurationError


def save(store: ResidualStore, client: int, round: int, value: float = 1.0) -> None:
    store.save(client, {"w": torch.full((2,), value)}, round)


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


def file(client: int, round: int) -> str:
    return f"client-{client}-round-{round}.safetensors"


@pytest.mark.parametrize("keep", [2, 3])
def test_files_stay_for_the_kept_checkpoints(keep: int, tmp_path: Path) -> None:
    store = DiskResiduals(str(tmp_path), keep=keep)
    states = []
    for round in range(8):
        save(store, 0, round, round)
        states.append(store.state_dict())
        states.append(store.state_dict())  # a second one of the same round is the same checkpoint
        # Every kept checkpoint can be resumed from, and nothing is left over.
        assert names(tmp_path) == {file(0, kept) for kept in range(max(0, round - keep + 1), round + 1)}
        for kept in range(max(0, round - keep + 1), round + 1):
            resumed = DiskResiduals(str(tmp_path), keep=keep)
            resumed.load_state_dict(states[2 * kept])
            assert resumed.load(0)["w"].tolist() == [kept, kept]


def test_files_between_checkpoints_go_too(tmp_path: Path) -> None:
    store = DiskResiduals(str(tmp_path))
    for round in range(3):
        save(store, 0, round)
    store.state_dict()
    assert names(tmp_path) == {file(0, round) for round in range(3)}  # no checkpoint before: nothing is known
    for round in range(3, 5):
        save(store, 0, round)
        store.state_dict()
    assert names(tmp_path) == {file(0, 3), file(0, 4)}


def test_a_killed_run_resumes_over_its_own_leftovers(tmp_path: Path) -> None:
    store = DiskResiduals(str(tmp_path))
    save(store, 0, 0)
    save(store, 1, 0)
    state = store.state_dict()
    save(store, 0, 1)  # the round that is lost
    save(store, 1, 2)
    (tmp_path / "client-5-round-1.tmp").write_bytes(b"torn")
    (tmp_path / "notes.txt").write_text("not ours")
    resumed = DiskResiduals(str(tmp_path))
    resumed.load_state_dict(state)
    assert resumed.load(0)["w"].tolist() == [1.0, 1.0]
    for round in range(1, 5):
        save(resumed, 0, round, 10.0 + round)
        resumed.state_dict()
        assert resumed.load(0)["w"].tolist() == [10.0 + round] * 2
        assert resumed.load(1)["w"].tolist() == [1.0, 1.0]
    assert names(tmp_path) == {file(0, 3), file(0, 4), file(1, 0), "notes.txt"}


def test_a_checkpoint_that_is_too_old_says_so(tmp_path: Path) -> None:
    store = DiskResiduals(str(tmp_path))
    save(store, 7, 0)
    old = store.state_dict()
    for round in range(1, 4):
        save(store, 7, round)
        store.state_dict()
    store.load_state_dict(old)
    with pytest.raises(ConfigurationError, match=r"residual of client 7 .* last 2 checkpoints"):
        store.load(7)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskResiduals(str(tmp_path))
    save(store, 0, 0, 5.0)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(store, 0, 1)
    assert file(0, 1) not in names(tmp_path)
    assert store.load(0)["w"].tolist() == [5.0, 5.0]


def test_the_folder_may_come_later(tmp_path: Path) -> None:
    store = DiskResiduals()
    with pytest.raises(ConfigurationError, match="folder for DiskResiduals"):
        save(store, 0, 0)
    store = DiskResiduals()
    store.bind(str(tmp_path / "run"))
    save(store, 0, 0)
    assert names(tmp_path / "run") == {file(0, 0)}
    given_one = DiskResiduals(str(tmp_path / "mine"))
    given_one.bind(str(tmp_path / "run"))
    save(given_one, 0, 0)
    assert names(tmp_path / "mine") == {file(0, 0)}
    MemoryResiduals().bind(str(tmp_path))
    with pytest.raises(ConfigurationError, match="keep of at least 2"):
        DiskResiduals(keep=1)
