"""Hand-written run folders with headline metrics other than accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from hetfl.runs.headline import FILE, Headline
from hetfl.runs.metrics_file import MetricsFile

MAE = Headline("mae", higher_is_better=False, percent=False, title="mean absolute error")
R2 = Headline("r2", percent=False, title="R²")
PERPLEXITY = Headline("perplexity", higher_is_better=False, percent=False)
MACRO_F1 = Headline("macro_f1", title="macro F1")


def write_run(
    folder: Path,
    headline: Headline,
    scores: Sequence[float],
    *,
    step: float = 1.0,
    seed: int = 0,
    lr: float = 0.1,
    clients: Sequence[float] = (),
) -> Path:
    """Write a finished run with levels a and b.

    Args:
        folder: the run folder.
        headline: the metric that compares models.
        scores: scores of level a, the global model, after every round; the last one is also the test score.
        step: difference between the scores of level b and level a.
        seed: seed of the run.
        lr: a setting that differs between groups.
        clients: each client's score with the global model; the score with its sub-model is twice as large.
    """
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(headline.to_json())
    config = {"seed_everything": seed, "trainer": {"max_epochs": len(scores)}, "model": {"lr": lr}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    file = MetricsFile(folder / "metrics.csv")
    figures = {"mean": scores[-1], "by_samples": scores[-1], "std": 0.25, "worst10": scores[-1] + 2 * step}
    for round, score in enumerate(scores):
        file.add(round, {"comm/up_bytes": 1e6, "comm/up_bytes_total": 1e6 * (round + 1), "comm/up_ratio": 4.0})
        for part, value in (("", score), ("a", score), ("b", score + step)):
            last = {headline.column("test", part): value} if round == len(scores) - 1 else {}
            file.add(round, {headline.column("val", part): value, **last})
        file.add(round, {headline.local(figure): value for figure, value in figures.items()})
    if clients:
        cells = {"client": range(len(clients)), "level": "a", "train_samples": 9, "test_samples": 3}
        table = pd.DataFrame({**cells, headline.name: clients, headline.own: [2 * score for score in clients]})
        table.to_csv(folder / "clients.csv", index=False)
    return folder
