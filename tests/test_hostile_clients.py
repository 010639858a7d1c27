"""Invalid answers of a client are refused by name and counted, and the round continues."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

import pandas as pd
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from hetfl import wire
from hetfl.aggregators import QFedAvg
from hetfl.flower.records import VALUES
from hetfl.updates import DenseUpdate
from tests.conftest import fit_in
from tests.hostile_cases import (
    VICTIM,
    Garble,
    Lie,
    Outcome,
    Play,
    altered,
    garbled,
    hostile_run,
    make,
)

HUGE = torch.finfo(torch.float32).max
ARRAY = b'{"dtype": "uint8", "shape": %s, "stype": "hetfl.wire", "arraychunk_ids": %s}'
FORGED = "all is well\nRound 9: update of client 0 at level a refused: by nobody\x1b[2J\u202e"
"""Text that imitates a log line, clears the screen, and reverses the writing direction."""


def repeated(times: int, position: bytes = b"0") -> bytes:
    """Return the JSON of a list that has one position many times."""
    return b"[" + b",".join([position] * times) + b"]"


GARBLED: dict[str, Garble] = {
    "invalid protobuf": garbled("ConfigRecord", b"\xff" * 40),
    "protobuf cut short": garbled("ConfigRecord", lambda body: body[:-3]),
    "a message cut short": garbled("Message", lambda body: body[:7]),
    "a message of nothing": garbled("Message", b""),
    "no JSON": garbled("RecordDict", b"{"),
    "JSON of another kind": garbled("RecordDict", b"[1]"),
    "JSON of a hundred thousand brackets": garbled("RecordDict", b"[" * 100_000),
    "a number of 5 000 digits": garbled("RecordDict", b'{"answer": ' + b"7" * 5000 + b"}"),
    "bytes that are no text": garbled("RecordDict", b"\xff\xfe\xfd"),
    "records that are not there": garbled("RecordDict", b'{"answer": "0"}'),
    "numbers for records": garbled("RecordDict", b'{"answer": 7}'),
    "lists for records": garbled("RecordDict", b'{"answer": [7]}'),
    "another class": garbled("RecordDict", lambda body: body, "ConfigRecord"),
    "an unknown class": garbled("RecordDict", lambda body: body, "Pickle"),
    "a root that is no message": garbled("Message", b"", "ConfigRecord"),
    "an array without its metadata": garbled("Array", b"{}"),
    "an array of parts that are not there": garbled("Array", ARRAY % (b"[1]", b"[99]")),
    "an array whose shape is a number": garbled("Array", ARRAY % (b"5", b"[0]")),
    "an array record that is a list": garbled("ArrayRecord", b"[]"),
}
"""Flower objects that Flower itself cannot read."""

BOMBS: dict[str, tuple[Garble, str]] = {
    "a chunk that is repeated a million times": (
        garbled("Array", ARRAY % (b"[5]", repeated(1_000_000))),
        r"an answer of at most [\d,]+ bytes but got arrays of [\d,]{9,}$",
    ),
    "the last chunk, repeated": (
        garbled("Array", ARRAY % (b"[5]", repeated(1_000_000, b"-1"))),
        r"an answer of at most [\d,]+ bytes but got arrays of [\d,]{9,}$",
    ),
    "a record of eight megabytes": (
        garbled("ConfigRecord", bytes(1 << 23)),
        r"an answer of at most [\d,]+ bytes but got more$",
    ),
}
"""Objects that Flower would make much of, and what the log says of them."""


def payload(make_payload: Callable[[bytes], bytes]) -> Lie:
    def lie(answer: RecordDict) -> RecordDict:
        record = answer["bytes.0"]
        assert isinstance(record, ArrayRecord)
        record[VALUES].data = make_payload(bytes(record[VALUES].data))
        return answer

    return lie


def dense(change: Callable[[torch.Tensor], torch.Tensor]) -> Lie:
    """Return a function that replaces all values in an otherwise valid message."""

    def changed(honest: bytes) -> bytes:
        header = wire.header.unpack(honest)
        values = wire.decode(honest, wire.Expected(header.round, header.client, header.size)).to_dense()
        return wire.encode(DenseUpdate(change(values)), round=header.round, client=header.client)

    return payload(changed)


def without(*names: str) -> Lie:
    return lambda answer: RecordDict({name: record for name, record in answer.items() if name not in names})


def renamed(answer: RecordDict) -> RecordDict:
    record = answer["report.0"]
    assert isinstance(record, ConfigRecord)
    return without("report.0")(RecordDict({**answer, "report.0\nRound 9": record}))


TRAINING: dict[str, tuple[Lie, str]] = {
    "a weight of 10^18": (altered(samples=10**18), "from 1 to 20 samples but got 1000000000000000000"),
    "a weight below 0": (altered(samples=-5), "from 1 to 20 samples but got -5"),
    "a weight that is text": (altered(samples=FORGED), "samples to be int but got str"),
    "passes without end": (altered(passes=2**62), "20 passes over its samples but got 4611686018427387904"),
    "passes below 0": (altered(passes=-1), "20 passes over its samples but got -1"),
    "no pass": (altered(passes=0), "20 passes over its samples but got 0"),
    "a loss of NaN": (altered(loss=math.nan), "for a loss but got nan"),
    "a loss beyond float32": (altered(loss=1.7e308), r"for a loss but got 1\.7e\+308"),
    "a loss of minus infinity": (altered(loss=-math.inf), "for a loss but got -inf"),
    "a norm that overflows with another": (altered(squared_norm=1.7e308), r"for a squared norm but got 1\.7e\+308"),
    "a norm below 0": (altered(squared_norm=-1.0), r"for a squared norm but got -1\.0"),
    "a norm of NaN": (altered(squared_norm=math.nan), "for a squared norm but got nan"),
    "a state that is a path": (altered(state="../../etc/passwd"), "name of a state but got ../../etc/passwd"),
    "a state of two lines": (altered(state="a\nb"), r"name of a state but got a\\nb"),
    "another client": (altered(client=0), r"reports of clients \[2\] but got \[0\]"),
    "an unknown status": (altered(status=FORGED), r"a status among .* but got 'all is well\\n"),
    "another nonce": (altered("answer", nonce=FORGED), r"Expected nonce .* but got 'all is well\\n"),
    "another protocol": (altered("answer", protocol=2**62), "Expected protocol 6 but got 4611686018427387904"),
    "reports without end": (altered("answer", reports=2**62), "1 reports but got 4611686018427387904"),
    "clients that are text": (altered("answer", clients=["a", "b"]), "numbers of clients"),
    "no answer in the answer": (without("answer"), "Expected record answer"),
    "no report": (without("report.0"), "Expected record report.0"),
    "records whose names are lines": (
        renamed,
        r"Expected record report.0 but got \['answer', .*report.0\\+nRound 9'\]",
    ),
    "no bytes": (without("bytes.0"), "length: Expected at least"),
    "bytes that are settings": (
        lambda answer: RecordDict({**answer, "bytes.0": ConfigRecord({"a": 1})}),
        "Expected bytes of hetfl.wire in record bytes.0",
    ),
    "an update that overflows": (
        dense(lambda values: values * 0 + HUGE),
        r"for an entry of an update but got 3\.4\d*e\+38",
    ),
    "an update times 10^30": (dense(lambda values: values * 1e30), r"for an entry of an update but got \d\.\d+e\+2\d"),
    "an update of NaN": (payload(lambda honest: honest[:-4] + b"\0\0\xc0\x7f"), "checksum|values"),
    "another round's update": (
        payload(lambda honest: wire.encode(DenseUpdate(torch.zeros(9)), round=99, client=VICTIM)),
        "round: Expected round",
    ),
    "a reason of several lines": (
        altered(status="refused", reason=FORGED, passes=2**62),
        r"refused: all is well\\nRound 9: .*by nobody\\x1b\[2J\\u202e$",
    ),
    "a reason of a megabyte": (altered(status="refused", reason="x" * 10**6), r"refused: x{297}\.\.\.$"),
}
"""False training answers, and the expected log message of each."""


def hostile_fixture(lies: dict[str, Any], garbles: dict[str, Garble], job: str, **options: Any) -> Callable[..., Any]:
    """Return a fixture with a run of all false answers, and a run in which the victim's answers are lost."""

    def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Play, Outcome, Outcome]:
        torch.set_num_threads(1)
        folder = tmp_path_factory.mktemp(f"hostile_{job}")
        play = Play(job, {name: lie for name, (lie, _) in lies.items()}, garbles)
        return (play, *hostile_run(fit_in(folder), folder, play, **options))

    return pytest.fixture(scope="module")(run)


training = hostile_fixture(
    TRAINING, GARBLED | {name: bomb for name, (bomb, _) in BOMBS.items()}, "train", limit_val_batches=0
)


def message_of(play: Play, outcome: Outcome, name: str) -> str:
    """Return the log message about the victim in the round of a false answer."""
    round = play.names.index(name)
    assert play.sent[round] == name
    (text,) = [text for text in outcome.by_round[round] if f"of client {VICTIM} " in text]
    return text


@pytest.mark.parametrize("name", GARBLED)
def test_an_unreadable_flower_object_is_refused_as_an_error_of_its_node(
    training: tuple[Play, Outcome, Outcome], name: str
) -> None:
    play, lied, _ = training
    assert "refused: Expected an answer that can be read but got " in message_of(play, lied, name)


@pytest.mark.parametrize("name", BOMBS)
def test_an_answer_larger_than_what_was_asked_for_is_refused(
    training: tuple[Play, Outcome, Outcome], name: str
) -> None:
    play, lied, _ = training
    message = message_of(play, lied, name)
    assert re.search(f"refused: Expected {BOMBS[name][1]}", message), message


@pytest.mark.parametrize("name", TRAINING)
def test_a_false_training_answer_is_refused_by_client_name(training: tuple[Play, Outcome, Outcome], name: str) -> None:
    play, lied, _ = training
    message = message_of(play, lied, name)
    assert re.search(TRAINING[name][1], message), message
    assert "refused: " in message
    assert message.isprintable()
    assert len(message) < 400


def test_false_training_answers_change_nothing_else(training: tuple[Play, Outcome, Outcome]) -> None:
    """The run reaches its end, every false answer is counted, and the honest updates of its round are in the model."""
    play, lied, silent = training
    assert lied.rows["comm/refused"].tolist() == [1] * len(play.names)
    assert silent.rows["comm/refused"].tolist() == [0] * len(play.names), silent.texts
    assert_same(lied, silent)
    for name in ("train/loss", "residual/norm"):
        pd.testing.assert_series_equal(lied.rows[name], silent.rows[name], check_exact=True)
    assert lied.rows["compute/flops_total"].iloc[-1] <= 4 / 3 * silent.rows["compute/flops_total"].iloc[-1]


def assert_same(lied: Outcome, silent: Outcome) -> None:
    for name, value in silent.state.items():
        assert torch.equal(value, lied.state[name]), name
        assert bool(value.isfinite().all())


LOSSES: dict[str, tuple[Lie, str]] = {
    "NaN": (altered(loss=math.nan), "for a loss but got nan"),
    "infinity": (altered(loss=math.inf), "for a loss but got inf"),
    "beyond float32": (altered(loss=1.7e308), "for a loss but got"),
    "below 0": (altered(loss=-1.0), r"Expected from 0 to 3\.40282e\+38 for a loss but got -1\.0"),
    "of no samples": (altered(passes=0), "20 passes over its samples but got 0"),
    "of samples without end": (altered(passes=2**62), "20 passes over its samples but got 46"),
}
"""False losses, which an aggregator raises to a power."""


losses = hostile_fixture(LOSSES, {}, "losses", build=lambda: make(aggregator=QFedAvg(1.0)), limit_val_batches=0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_false_loss_is_refused_by_client_name(losses: tuple[Play, Outcome, Outcome], name: str) -> None:
    play, lied, _ = losses
    (message,) = [
        text for text in lied.by_round[play.names.index(name)] if f"losses of client {VICTIM} refused: " in text
    ]
    assert re.search(LOSSES[name][1], message), message


def test_false_losses_change_nothing_else(losses: tuple[Play, Outcome, Outcome]) -> None:
    play, lied, silent = losses
    assert lied.rows["comm/refused"].tolist() == [1] * len(play.names)
    assert_same(lied, silent)


CHANNELS = (8, 16)
"""Channels of the net's norm layers. The sums of a layer are those of means, those of variances, and a batch count."""
FIRST = slice(0, 8), slice(8, 16), 16


def sums(where: slice | int, change: Callable[[torch.Tensor], torch.Tensor]) -> Lie:
    """Return a function that changes some sums of the first norm layer."""

    def changed(values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        values[where] = change(values[where])
        return values

    return dense(changed)


MEANS, VARIANCES, BATCHES = FIRST
STATISTICS: dict[str, tuple[Lie, str]] = {
    "means of 3e38": (sums(MEANS, lambda x: x * 0 + 3e38), "for a mean but got 1.5e.38 in channel 0"),
    "means of -3e38": (sums(MEANS, lambda x: x * 0 - 3e38), "for a mean but got -1.5e.38 in channel 0"),
    "variances below 0": (sums(VARIANCES, lambda x: -x), "from 0 to 3.40282e.38 for a variance but got -"),
    "one variance below 0": (sums(slice(11, 12), lambda x: -x), "for a variance but got -.* in channel 3"),
    "no batch": (sums(BATCHES, lambda x: x * 0), "2 batches but got 0"),
    "half a batch": (sums(BATCHES, lambda x: x / 4), "2 batches but got 0.5"),
    "batches below 0": (sums(BATCHES, lambda x: -x), "2 batches but got -2"),
    "batches without end": (sums(BATCHES, lambda x: x * 0 + 1e30), r"2 batches but got 1e\+30"),
    "a thousand times the batches": (sums(slice(0, 17), lambda x: x * 1000), "2 batches but got 2000"),
    "variances of 3e38": (sums(VARIANCES, lambda x: x * 0 + 3e38), "a standard deviation within 5 typical"),
    "means far outside": (sums(MEANS, lambda x: x + 1e4), "a mean within 5 typical activations"),
    "one mean far outside": (sums(slice(5, 6), lambda x: x - 1e3), "a mean within 5 typical .* in channel 5"),
    "one variance far outside": (sums(slice(14, 15), lambda x: x * 1e6), "a standard deviation .* in channel 6"),
    "another size": (payload(lambda honest: wire.encode(DenseUpdate(torch.ones(3)), round=13, client=2)), "size: "),
    "more passes": (altered(passes=10**9), "20 passes over its samples but got 1000000000"),
}
"""False static batch-norm statistics, and the expected log message of each."""


statistics = hostile_fixture(STATISTICS, {}, "statistics")


@pytest.mark.parametrize("name", STATISTICS)
def test_false_sums_are_left_out_by_client_name(statistics: tuple[Play, Outcome, Outcome], name: str) -> None:
    play, lied, _ = statistics
    (message,) = lied.by_round[play.names.index(name)]
    assert f"statistics of client {VICTIM} " in message
    assert re.search(f"refused: .*{STATISTICS[name][1]}", message), message


def test_false_sums_change_nothing_else(statistics: tuple[Play, Outcome, Outcome]) -> None:
    """Every evaluation equals that of a run without the victim's sums, bit for bit."""
    play, lied, silent = statistics
    assert lied.rows["comm/refused"].tolist() == [1] * len(play.names)
    assert_same(lied, silent)
    columns = [name for name in silent.rows.columns if name.startswith(("val/", "local/"))]
    assert len(columns) > 4
    pd.testing.assert_frame_equal(lied.rows[columns], silent.rows[columns], check_exact=True)
    assert lied.rows["val/accuracy"].iloc[-1] > 0.5
