"""A registered node over the loopback that sends a false answer in every round; the run continues without it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

from tests.flower_federations import NODES, Federation, args, checkpoint, replayed, run_of, running
from tests.hostile_node import LIES

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with running(tmp_path) as made:
        yield made


@pytest.mark.filterwarnings("ignore:Round:UserWarning", "ignore:No client can run level:UserWarning")
def test_a_hostile_node_neither_ends_the_run_nor_changes_the_result(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients 3 to 5 are on the hostile node. The result equals that of a run in one process without their updates."""
    everyone = "--model.init_args.selection.init_args.clients_per_round=9"
    more = [f"--trainer.max_epochs={len(LIES)}", everyone]
    settings = args(federation.folder, *more)
    for number in NODES:
        with monkeypatch.context() as patched:
            if number == 1:
                path = [str(HERE / "hostile_site"), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
                patched.setenv("PYTHONPATH", os.pathsep.join(part for part in path if part))
            federation.node(number, settings=settings)
    federation.server(settings=settings)
    assert federation.end() == 0, federation.log()
    log, run = federation.log(), run_of(federation.folder)
    for round, (_, reason) in enumerate(LIES.values()):
        assert re.search(rf"Round {round + 1}: update of client [345] at level \w refused: .*{reason}", log), log
    assert not re.search(r"^Round 9", log, re.MULTILINE), "a forged line"
    assert "\x1b[2J" not in log
    table = pd.read_csv(run / "metrics.csv")
    assert len(table) == len(LIES)
    assert (table["comm/refused"] >= 1).all()
    alone = checkpoint(replayed(federation.folder, {0: log}, *more))["state_dict"]
    for name, value in checkpoint(run)["state_dict"].items():
        assert torch.equal(value, alone[name]), name
