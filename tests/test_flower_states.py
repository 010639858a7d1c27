"""A client's state on its disk: old and new versions stay until the server decides, and lost states are detected."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hetfl.flower.states import NOTHING, ClientState, ClientStates, StateBook, StateLost

RUN, OTHER = "0" * 32, "1" * 32


def state(round: int, value: float = 1.0) -> ClientState:
    return ClientState(round, {"residual/w": torch.full((2, 3), value), "memory/w": torch.arange(3.0)})


def test_a_state_is_saved_and_loaded_unchanged(tmp_path: Path) -> None:
    states = ClientStates(tmp_path)
    name = states.save(RUN, 4, state(7))
    again = ClientStates(tmp_path).load(RUN, 4, name)
    assert again.round == 7
    assert again.blocks.keys() == state(7).blocks.keys()
    for key, block in again.blocks.items():
        assert torch.equal(block, state(7).blocks[key])


def test_an_empty_state_writes_no_file(tmp_path: Path) -> None:
    states = ClientStates(tmp_path)
    assert states.save(RUN, 0, ClientState(3, {})) == NOTHING
    assert states.load(RUN, 0, NOTHING) == ClientState()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_old_and_new_states_stay_until_the_server_decides(tmp_path: Path) -> None:
    states = ClientStates(tmp_path)
    old, accepted, refused = (states.save(RUN, 1, state(round)) for round in (0, 1, 2))
    for name in (old, accepted, refused):
        states.load(RUN, 1, name)
    states.prune(RUN, 1, {accepted})
    states.load(RUN, 1, accepted)
    for name in (old, refused):
        with pytest.raises(StateLost, match="states up to round 1"):
            states.load(RUN, 1, name)


def test_pruning_affects_one_client_of_one_federation(tmp_path: Path) -> None:
    states = ClientStates(tmp_path)
    names = {(run, client): states.save(run, client, state(0)) for run in (RUN, OTHER) for client in (1, 11)}
    assert len(set(names.values())) == 4
    states.prune(RUN, 1, ())
    del names[RUN, 1]
    for (run, client), name in names.items():
        states.load(run, client, name)


@pytest.mark.parametrize("how", ["deleted", "damaged", "cut", "another client's", "another round's", "another run's"])
def test_a_lost_or_foreign_state_is_detected(tmp_path: Path, how: str) -> None:
    states = ClientStates(tmp_path)
    name = states.save(RUN, 1, state(5))
    path = tmp_path / RUN / f"client-1-round-5-{name}.safetensors"
    content = path.read_bytes()
    path.unlink()
    if how == "damaged":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "another client's":
        other = states.save(RUN, 2, state(5, value=2.0))
        (tmp_path / RUN / f"client-2-round-5-{other}.safetensors").rename(path)
    elif how == "another round's":
        path.with_name(f"client-1-round-6-{name}.safetensors").write_bytes(content)
    elif how == "another run's":
        other = states.save(OTHER, 1, state(5, value=2.0))
        (tmp_path / OTHER / f"client-1-round-5-{other}.safetensors").rename(path)
    with pytest.raises(StateLost) as error:
        states.load(RUN, 1, name)
    assert "\n" not in str(error.value)


def test_a_failing_write_keeps_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = ClientStates(tmp_path)
    old = states.save(RUN, 1, state(0))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        states.save(RUN, 1, state(1))
    monkeypatch.undo()
    states.load(RUN, 1, old)
    assert len(list(tmp_path.rglob("*"))) == 2, "only the folder and the old file, no incomplete file"


def test_incomplete_files_of_a_killed_node_are_deleted(tmp_path: Path) -> None:
    states = ClientStates(tmp_path)
    name = states.save(RUN, 1, state(0))
    (whole,) = (tmp_path / RUN).iterdir()
    for client in (1, 11):
        (tmp_path / RUN / f"client-{client}-round-1-{'a' * 32}.safetensors.tmp").write_bytes(b"torn")
    states.prune(RUN, 1, {name})
    assert sorted(path.name for path in (tmp_path / RUN).iterdir()) == sorted(
        [whole.name, f"client-11-round-1-{'a' * 32}.safetensors.tmp"]
    )
    states.load(RUN, 1, name)


@pytest.mark.parametrize("federation", ["../" + "0" * 29, "", "0" * 31, "0" * 31 + "/", "G" * 32])
def test_a_path_as_federation_name_is_refused(tmp_path: Path, federation: str) -> None:
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        ClientStates(tmp_path).save(federation, 0, state(0))


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["train", "refused", "checkpoint", "failed checkpoint", "crash"]), max_size=25))
def test_every_state_that_the_server_may_return_to_is_on_the_disk(
    tmp_path_factory: pytest.TempPathFactory, events: list[str]
) -> None:
    """A client, and a server that accepts, refuses, fails to write checkpoints, and is killed: no state is lost."""
    states, book = ClientStates(tmp_path_factory.mktemp("states")), StateBook()
    saved, last = [book.state_dict()], 0  # checkpoints on the disk
    book.checkpointed()
    for number, event in enumerate(events):
        if event in ("train", "refused"):
            states.load(RUN, 0, book.present(0))
            states.prune(RUN, 0, {book.present(0), *book.keep(0)})
            name = states.save(RUN, 0, state(number))
            if event == "train":
                book.take(0, name)
        elif event == "crash":
            book, last = StateBook(), number
            book.load_state_dict(saved[-1])
        else:
            written = book.state_dict()
            if event == "checkpoint":
                saved.append(written)
                book.checkpointed()
        for checkpoint in saved[-2:] if last == 0 else saved[-1:]:
            for name in checkpoint["states"]:
                states.load(RUN, 0, name)


def test_only_needed_states_stay_on_the_disk(tmp_path: Path) -> None:
    states, book = ClientStates(tmp_path), StateBook()
    for round in range(20):
        states.load(RUN, 0, book.present(0))
        states.prune(RUN, 0, {book.present(0), *book.keep(0)})
        book.take(0, states.save(RUN, 0, state(round)))
        book.state_dict()
        book.checkpointed()
    assert len(list((tmp_path / RUN).iterdir())) <= 4
