"""Fleets for tests, and the metrics that a run has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning import Trainer

from hetfl.fleet import LogNormal, RandomFleet, SameDevice, Work
from hetfl.fleet.numbers import FloatArray, IntArray
from hetfl.layout import Index
from hetfl.piece import Piece
from hetfl.types import Report, Task
from hetfl.updates import Update


def rows(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(str(trainer.log_dir)) / "metrics.csv")


def varied(**changes: Any) -> RandomFleet:
    """Return a fleet of varied devices; rounds of the small nets take seconds of simulated time on it."""
    settings: dict[str, Any] = {
        "throughput": LogNormal(2e6, 3),
        "downlink": LogNormal(2e4, 2),
        "uplink": LogNormal(1e3, 2),
        "variation": 0.3,
        "link_variation": 0.3,
    }
    return RandomFleet(**{**settings, **changes})


class Timed(SameDevice):
    """Every round of client k takes ``seconds[k]``, whatever it computes and sends."""

    def __init__(self, seconds: list[float]) -> None:
        super().__init__()
        self.given = np.array(seconds)

    def seconds(self, clients: IntArray | int, round: int | None, work: Work) -> FloatArray:
        return np.asarray(self.given[clients])


class Ends(Piece):
    """Records how every task of a run ended."""

    def __init__(self) -> None:
        self.round = 0
        self.accepted: set[tuple[int, int]] = set()
        self.missed: dict[tuple[int, int], bool] = {}

    def begin_round(self, round: int, lr: float) -> None:
        self.round = round

    def observe(self, update: Update, index: Index, report: Report) -> None:
        self.accepted.add((self.round, report.client))

    def miss(self, task: Task, late: bool) -> None:
        assert (task.round, task.client) not in self.missed
        self.missed[task.round, task.client] = late
