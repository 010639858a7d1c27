"""Fleets from CSV files: reading them, and the errors of wrong files."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetfl.errors import ConfigurationError
from hetfl.fleet import CsvFleet
from hetfl.fleet.numbers import FOREVER
from hetfl.piece import Facts

HEADER = "client,throughput,downlink,uplink"


def fleet(tmp_path: Path, text: str, clients: int = 3) -> CsvFleet:
    path = tmp_path / "devices.csv"
    path.write_text(text, encoding="utf-8")
    made = CsvFleet(str(path))
    made.setup(Facts([1] * clients, 0))
    return made


def test_rows_are_assigned_by_client_and_missing_values_are_defaults(tmp_path: Path) -> None:
    text = (
        "kind,uplink,client,throughput,downlink,availability,last_round\n"
        "phone,1e3,2,1e9,1e6,,7\n\nbox, 2e3 ,0,2e9,2e6,0.5,\nphone,3e3,1,3e9,3e6,0.25\n\n"
    )
    devices = fleet(tmp_path, "\ufeff" + text).devices
    assert devices.uplink.tolist() == [2e3, 3e3, 1e3]
    assert devices.throughput.tolist() == [2e9, 3e9, 1e9]
    assert devices.availability.tolist() == [0.5, 0.25, 1.0]
    assert devices.failure_rate.tolist() == [0.0] * 3
    assert devices.first_round.tolist() == [0] * 3
    assert devices.last_round.tolist() == [FOREVER, FOREVER, 7]
    assert [devices.kinds[number] for number in devices.kind.tolist()] == ["box", "phone", "phone"]


def test_the_description_of_a_csv_fleet_depends_on_the_file_only(tmp_path: Path) -> None:
    text = f"{HEADER}\n0,1e9,1e6,1e6\n1,1e9,1e6,1e6\n2,1e9,1e6,1e6\n"
    one, same = fleet(tmp_path, text), fleet(tmp_path, text)
    other = fleet(tmp_path, text.replace("2,1e9", "2,2e9"))
    assert one.describe() == same.describe() != other.describe()
    assert one.always


GOOD = "0,1e9,1e6,1e6\n1,1e9,1e6,1e6\n2,1e9,1e6,1e6\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER}\n{GOOD}".replace("1,1e9", "1,fast"), "a number in column throughput in line 3 of .* got 'fast'"),
        (f"{HEADER}\n{GOOD}".replace("2,1e9,1e6", "2,1e9,"), "a number in column downlink in line 4 of .* got ''"),
        (f"{HEADER}\n0,1e9,1e6,1e6\n\n1,1e9,1e6,0\n2,1,1,1", "uplink in line 4 of .* above 0 but got 0"),
        (f"{HEADER},availability\n" + GOOD.replace("\n", ",2\n"), "availability in line 2 of .* share .* but got 2"),
        (f"{HEADER},failure_rate\n" + GOOD.replace("\n", ",-1\n"), "failure_rate in line 2 of .* but got -1"),
        (f"{HEADER},first_round\n" + GOOD.replace("\n", ",1.5\n"), "first_round in line 2 of .* whole .* got 1.5"),
        (
            f"{HEADER},first_round,last_round\n" + GOOD.replace("\n", ",3,2\n"),
            "last_round in line 2 .* 3, but got 2",
        ),
        (f"{HEADER}\n{GOOD}3,1,1,1\n", "each client from 0 to 2 once in column client but got 3 in line 5 of"),
        (f"{HEADER}\n{GOOD}1,1,1,1\n", "but got 1 again in line 5 of"),
        (f"{HEADER}\n{GOOD}".replace("1,1e9", "x,1e9"), "a number in column client in line 3 of .* got 'x'"),
        (f"{HEADER}\n{GOOD}".replace("1,1e9", "0.5,1e9"), "but got 0.5 in line 3"),
        (f"{HEADER}\n0,1,1,1\n2,1,1,1\n", "but 1 has no line in"),
        (f"{HEADER}\n", "but 0 has no line in"),
        ("client,throughput,downlink\n0,1,1\n", r"columns \['uplink'\] in"),
        (f"{HEADER},speed\n" + GOOD.replace("\n", ",1\n"), "got 'speed'"),
        (f"{HEADER}\n" + GOOD.replace("\n", ",1\n"), "at most 4 cells in a line"),
        (f"{HEADER}\n{GOOD}".replace("1,1e9", "1,9,1e9"), "Expected 4 fields in line 3, saw 5"),
        ("", "Expected a CSV file in .* No columns"),
    ],
)
def test_mistakes_are_reported_in_one_line_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        fleet(tmp_path, text)
    assert "\n" not in str(error.value)
    assert "devices.csv" in str(error.value)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("none.csv", "bytes.csv"):
        with pytest.raises(ConfigurationError, match=f"Expected a CSV file in .*{name}") as error:
            CsvFleet(str(tmp_path / name)).setup(Facts([1] * 3, 0))
        assert "\n" not in str(error.value)
