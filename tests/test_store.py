"""Client stores: the files on the disk, and when they are deleted."""

from __future__ import annotations

import io
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hetfl.errors import ConfigurationError
from hetfl.store import ClientStore, DiskStore, MemoryStore


def save(store: ClientStore, client: int, round: int, value: float = 1.0) -> None:
    store.save(client, {"w": torch.full((2,), value)}, round)


def checkpoint(store: ClientStore) -> dict[str, Any]:
    """Return the state as a written checkpoint holds it."""
    state = store.state_dict()
    store.checkpointed()
    return state


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


def file(client: int, round: int) -> str:
    return f"client-{client}-round-{round}.safetensors"


@pytest.mark.parametrize("keep", [2, 3])
def test_files_of_the_kept_checkpoints_stay(keep: int, tmp_path: Path) -> None:
    store = DiskStore(str(tmp_path), keep=keep)
    states = []
    for round in range(8):
        save(store, 0, round, round)
        states.append(checkpoint(store))
        states.append(checkpoint(store))  # a second checkpoint of the same round counts as the same one
        # Every kept checkpoint can be resumed, and there are no other files.
        assert names(tmp_path) == {file(0, kept) for kept in range(max(0, round - keep + 1), round + 1)}
        for kept in range(max(0, round - keep + 1), round + 1):
            resumed = DiskStore(str(tmp_path), keep=keep)
            resumed.load_state_dict(states[2 * kept])
            assert resumed.load(0)["w"].tolist() == [kept, kept]


def test_files_between_checkpoints_are_deleted(tmp_path: Path) -> None:
    store = DiskStore(str(tmp_path))
    for round in range(3):
        save(store, 0, round)
    checkpoint(store)
    assert names(tmp_path) == {file(0, round) for round in range(3)}  # there is only one checkpoint so far
    for round in range(3, 5):
        save(store, 0, round)
        checkpoint(store)
    assert names(tmp_path) == {file(0, 3), file(0, 4)}


def test_a_killed_run_resumes_despite_its_leftover_files(tmp_path: Path) -> None:
    store = DiskStore(str(tmp_path))
    save(store, 0, 0)
    save(store, 1, 0)
    state = checkpoint(store)
    save(store, 0, 1)  # this round is lost by the kill
    save(store, 1, 2)
    (tmp_path / "client-5-round-1.tmp").write_bytes(b"torn")
    (tmp_path / "notes.txt").write_text("not ours")
    resumed = DiskStore(str(tmp_path))
    resumed.load_state_dict(state)
    assert resumed.load(0)["w"].tolist() == [1.0, 1.0]
    for round in range(1, 5):
        save(resumed, 0, round, 10.0 + round)
        checkpoint(resumed)
        assert resumed.load(0)["w"].tolist() == [10.0 + round] * 2
        assert resumed.load(1)["w"].tolist() == [1.0, 1.0]
    assert names(tmp_path) == {file(0, 3), file(0, 4), file(1, 0), "notes.txt"}


def test_a_checkpoint_whose_files_are_deleted_is_refused(tmp_path: Path) -> None:
    store = DiskStore(str(tmp_path))
    save(store, 7, 0)
    old = checkpoint(store)
    for round in range(1, 4):
        save(store, 7, round)
        checkpoint(store)
    with pytest.raises(ConfigurationError, match=r"files of 1 clients in .* got 0 of them.* last 2 checkpoints"):
        store.load_state_dict(old)


@pytest.mark.parametrize("lost", [1, 5])
def test_failed_checkpoints_delete_no_files(tmp_path: Path, lost: int) -> None:
    store = DiskStore(str(tmp_path))
    save(store, 0, 0, 0.0)
    state = checkpoint(store)
    for round in range(1, 1 + lost):
        save(store, 0, round)
        store.state_dict()  # the disk is full
        resumed = DiskStore(str(tmp_path))
        resumed.load_state_dict(state)
        assert resumed.load(0)["w"].tolist() == [0.0, 0.0]
    for round in range(1 + lost, 4 + lost):
        save(store, 0, round)
        checkpoint(store)
    assert names(tmp_path) == {file(0, lost + 2), file(0, lost + 3)}


def test_files_of_a_checkpoint_being_written_are_kept(tmp_path: Path) -> None:
    """A written checkpoint is confirmed only when the next one is made; until then it keeps its files."""
    store = DiskStore(str(tmp_path))
    states = []
    for round in range(6):
        save(store, 0, round, round)
        store.checkpointed()  # confirms the previous checkpoint
        states.append(store.state_dict())
        for kept in range(max(0, round - 1), round + 1):
            resumed = DiskStore(str(tmp_path))
            resumed.load_state_dict(states[kept])
            assert resumed.load(0)["w"].tolist() == [kept, kept]
    assert len(names(tmp_path)) == 3


def test_files_of_another_run_are_not_deleted(tmp_path: Path) -> None:
    save(DiskStore(str(tmp_path)), 0, 0)
    before = (tmp_path / file(0, 0)).read_bytes()
    with pytest.raises(ConfigurationError, match=r"no clients' files in .* another run"):
        save(DiskStore(str(tmp_path)), 0, 0, 2.0)
    assert (tmp_path / file(0, 0)).read_bytes() == before


def test_files_of_the_previous_run_are_copied_into_a_new_folder(tmp_path: Path) -> None:
    store = DiskStore()
    store.bind(str(tmp_path / "one"))
    save(store, 3, 5, 7.0)
    store.bind(str(tmp_path / "one"))
    store.bind(str(tmp_path / "two"))
    assert names(tmp_path / "two") == names(tmp_path / "one") == {file(3, 5)}
    assert store.load(3)["w"].tolist() == [7.0, 7.0]
    save(store, 3, 6)
    assert file(3, 6) not in names(tmp_path / "one")


def test_damage_is_detected_and_names_the_file(tmp_path: Path) -> None:
    store = DiskStore(str(tmp_path))
    store.save(4, {"w": torch.arange(40.0), "b": torch.ones(3, dtype=torch.float64)}, 1)
    path, whole = tmp_path / file(4, 1), store.load(4)
    data, choose = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(data[:8], "little")
    for _ in range(500):
        position = choose.randrange(len(data))
        wrong = bytearray(data)
        wrong[position] ^= 1 << choose.randrange(8)
        path.write_bytes(wrong if choose.random() < 0.7 else data[:position])
        try:
            blocks = store.load(4)
        except ConfigurationError as error:
            assert "client-4-round-1" in str(error)  # noqa: PT017
        else:  # a format name or a blank was changed: the content is still right
            assert position < header
            assert all(torch.equal(blocks[name], whole[name]) for name in whole)


@pytest.mark.parametrize("other", ["client", "round", "run"])
def test_a_swapped_client_file_is_refused(tmp_path: Path, other: str) -> None:
    """A whole file with a valid digest, of another client, an older round, or the same round of another run."""
    store, stranger = DiskStore(str(tmp_path / "a")), DiskStore(str(tmp_path / "b"))
    for round in range(2):
        save(store, 0, round, 1.0 + round)
    save(store, 1, 1, 7.0)
    save(stranger, 0, 1, 8.0)
    sources = {"client": file(1, 1), "round": file(0, 0), "run": f"../b/{file(0, 1)}"}
    resumed = DiskStore(str(tmp_path / "a"))
    resumed.load_state_dict(checkpoint(store))
    shutil.copy(tmp_path / "a" / sources[other], tmp_path / "a" / file(0, 1))
    for each in (store, resumed):
        with pytest.raises(ConfigurationError, match="written file in .*client-0-round-1.* but got a file of") as error:
            each.load(0)
        assert "\n" not in str(error.value)
        assert each.load(1)["w"].tolist() == [7.0, 7.0]


def test_a_checkpoint_without_digests_is_refused(tmp_path: Path) -> None:
    store = DiskStore(str(tmp_path))
    save(store, 0, 0)
    state = checkpoint(store)
    del state["digests"]
    with pytest.raises(ConfigurationError, match="Expected digests of 1 clients' files .* but got 0"):
        DiskStore(str(tmp_path)).load_state_dict(state)


def test_blocks_stay_in_memory_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskStore(str(tmp_path))
    save(store, 0, 0, 5.0)
    before = checkpoint(store)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        for client in (0, 1):
            with pytest.warns(UserWarning, match="not written .*No space.* training goes on"):
                save(store, client, 1, 6.0 + client)
    assert names(tmp_path) == {file(0, 0)}
    assert [store.load(client)["w"].tolist() for client in (0, 1)] == [[6.0, 6.0], [7.0, 7.0]]
    state = store.state_dict()
    for saved, expected in [(before, {0: 5.0}), (state, {0: 6.0, 1: 7.0})]:
        resumed = DiskStore(str(tmp_path))
        resumed.load_state_dict(saved)
        assert {client: resumed.load(client)["w"][0].item() for client in resumed.clients()} == expected
    save(store, 2, 2)  # there is space again
    assert {file(0, 1), file(1, 1), file(2, 2)} < names(tmp_path)
    assert not store.state_dict()["unwritten"]
    assert [store.load(client)["w"].tolist() for client in (0, 1)] == [[6.0, 6.0], [7.0, 7.0]]


def test_the_folder_of_a_disk_store_may_be_bound_later(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="folder for DiskStore"):
        save(DiskStore(), 0, 0)
    with pytest.raises(ConfigurationError, match="folder for DiskStore"):
        DiskStore().bind(None)
    store = DiskStore()
    store.bind(str(tmp_path / "run"))
    save(store, 0, 0)
    assert names(tmp_path / "run") == {file(0, 0)}
    given_one = DiskStore(str(tmp_path / "mine"))
    given_one.bind(str(tmp_path / "run"))
    save(given_one, 0, 0)
    assert names(tmp_path / "mine") == {file(0, 0)}
    MemoryStore().bind(str(tmp_path))
    with pytest.raises(ConfigurationError, match="keep of at least 2"):
        DiskStore(keep=1)


def test_blocks_do_not_keep_the_memory_of_other_vectors() -> None:
    """Otherwise a client that trains less than before would keep whole vectors of which only a part is used."""
    store, vector_D = MemoryStore(), torch.arange(1.0, 7.0)
    index = {name: (slice(0, 2),) for name in "abc"}
    store.write(0, index, vector_D, 0)
    written = store.write(0, {"a": (slice(0, 2),)}, vector_D[:2], 1)
    vector_D.zero_()
    assert torch.cat(list(written.values())).tolist() == [1, 2, 3, 4, 5, 6]
    assert {block.untyped_storage().data_ptr() for block in written.values()} == {written.vector_D.data_ptr()}
    assert written.vector_D.untyped_storage().nbytes() == 24


@pytest.mark.parametrize("size", [3, 3000])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e-45])
def test_only_clients_with_all_zero_blocks_are_forgotten(value: float, size: int) -> None:
    store, vector_D = MemoryStore(), torch.zeros(2 * size)
    index = {name: (slice(0, size),) for name in "ab"}
    store.write(0, index, vector_D, 0)
    assert store.clients() == []
    vector_D[-1] = value
    store.write(0, index, vector_D, 1)
    assert store.clients() == [0]
    store.write(0, index, torch.full((2 * size,), -0.0), 2)
    assert store.clients() == []


def test_a_checkpoint_stores_every_entry_once() -> None:
    store = MemoryStore()
    store.write(0, {name: (slice(0, 5_000),) for name in "abcdefghij"}, torch.randn(50_000), 0)
    file = io.BytesIO()
    torch.save(store.state_dict(), file)
    assert 4 * 50_000 < file.tell() < 1.1 * 4 * 50_000
