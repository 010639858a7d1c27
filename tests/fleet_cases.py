"""Fleets for tests, and the metrics that a run has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from lightning import Trainer

from hetfl.fleet import LogNormal, RandomFleet


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
