"""The columns of a run's tables, and which numbers they may hold."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Rule: TypeAlias = tuple[str, Callable[[NDArray[np.float64]], NDArray[np.bool_]]]
"""The description of valid numbers of a column, and a test for them; NaN, an empty cell, is not tested."""

# A float32 mean can be slightly above 1.
SHARE: Rule = ("shares from 0 to 1", lambda x: (x >= 0) & (x <= 1 + 1e-6))
AMOUNT: Rule = ("finite numbers from 0", lambda x: (x >= 0) & np.isfinite(x))
WHOLE: Rule = ("whole numbers from 0", lambda x: (x >= 0) & np.isfinite(x) & (x == np.floor(x)))
NUMBER: Rule = ("numbers", lambda x: np.full(x.shape, True))

SCORES = r"(val|test|cluster)/({0})((_by_(level|head))?/.+)?|local/({0})_(mean|std|worst10)"
METRIC_RULES: Mapping[str, Rule] = {
    r"step": WHOLE,
    r"comm/.*|budget/.*|assignment/.*|compute/flops_total|sim/.*": AMOUNT,
    r"parts/density": ("shares above 0, up to 1", lambda x: (x > 0) & (x <= 1)),
}
"""Rules by name pattern; columns of ``SCORES`` are shares if they are percentages; others have any numbers."""
TOTAL = re.compile(r"(comm|compute|sim)/(?!up_ratio).*_total")
"""Columns of ``metrics.csv`` that never fall; only the ratio over the whole run may fall."""
LEVEL_RULES: Mapping[str, Rule | None] = {
    "level": None,
    **dict.fromkeys(("width", "depth", "density", "rank"), AMOUNT),
    **dict.fromkeys(("parameters", "forward_flops", "training_flops", "down_bytes", "up_bytes"), AMOUNT),
}
"""The columns of ``levels.csv``, and ``CLIENT_RULES`` those of ``clients.csv`` without its scores; None: a name."""
ADDED = {"density": 1.0, "rank": math.nan}
"""Columns that older tables lack, and their values."""
CLIENT_RULES: Mapping[str, Rule | None] = {
    "client": WHOLE,
    "level": None,
    **dict.fromkeys(("train_samples", "test_samples"), WHOLE),
}
