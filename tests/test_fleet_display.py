"""The display of a fleet before a run and at its end."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from hetfl.cli import main
from hetfl.display.fleet_tables import comings_and_goings
from hetfl.display.summary import totals
from hetfl.fleet import Between, Preset, RandomFleet
from hetfl.piece import Facts

ROOT = Path(__file__).parent.parent
DEMO = ["describe", "-c", str(ROOT / "configs/demo.yaml"), "--model.net.hidden=[16,32]", "--data.num_clients=20"]


def test_describe_prints_device_kinds_and_seconds_per_level(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main([*DEMO, "-c", str(ROOT / "configs/fleet/mixed.yaml"), "--model.assignment.seconds=0.06"])
    output = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in output.splitlines()) <= 80
    fleet = Preset("mixed")
    fleet.setup(Facts([1] * 20, 0))
    for number, kind in enumerate(fleet.devices.kinds):
        count = int((fleet.devices.kind == number).sum())
        assert re.search(rf"^{kind} +{count} +", output, re.MULTILINE)
    assert re.search(
        r"^workstation +2 +5\.00 TFLOP/s +1\.00 Gbit/s +1\.00 Gbit/s +90\.0 % +0\.5 % *$", output, re.MULTILINE
    )
    rows = re.findall(r"^([a-e]) +(\d+) +(?:–|[\d.]+ s) ", output, re.MULTILINE)
    assert [level for level, _ in rows] == list("abcde")
    assert sum(int(count) for _, count in rows) == 20
    assert "after 1.5 s" in output


@pytest.mark.slow
def test_describe_prints_the_fleet_of_other_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "devices.csv"
    lines = [f"{k},1e9,1e6,{1e5 * (k + 1):g},{k % 2}" for k in range(20)]
    path.write_text("client,throughput,downlink,uplink,first_round\n" + "\n".join(lines) + "\n", encoding="utf-8")
    main([*DEMO, "-c", str(ROOT / "configs/fleet/csv.yaml"), f"--model.fleet.path={path}"])
    output = capsys.readouterr().out
    assert re.search(
        r"^device +20 +1\.00 GFLOP/s +8\.00 Mbit/s +8\.40 Mbit/s +100\.0 % +0\.0 % *$", output, re.MULTILINE
    )
    assert "10 clients join after the first round, 0 leave" in output
    main([*DEMO, "-c", str(ROOT / "configs/fleet/random.yaml")])
    assert re.search(r"RandomFleet: devices", capsys.readouterr().out)


def test_joining_and_leaving_clients_are_counted() -> None:
    fleet = RandomFleet(first_round=Between(0, 3), stays=2.0)
    fleet.setup(Facts([1] * 30, 0))
    joining = int(np.count_nonzero(fleet.devices.first_round))
    assert comings_and_goings(fleet) == f"{joining} clients join after the first round, 30 leave"
    plain = RandomFleet()
    plain.setup(Facts([1] * 30))
    assert comings_and_goings(plain) is None


def test_the_summary_shows_the_number_of_lost_updates() -> None:
    assert totals({"sim/lost_total": 3.0}, 1.0)["updates lost"].startswith("3 (")
    assert "updates lost" not in totals({"sim/lost_total": 0.0}, 1.0)
