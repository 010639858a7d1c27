"""Every figure of the package, drawn from hand-written runs and tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from hetfl import analysis
from hetfl.analysis.assignment_plots import COLUMNS as ASSIGNMENT_COLUMNS
from hetfl.analysis.cluster_plots import plot_assignments
from hetfl.analysis.theme import group_styles
from hetfl.report.groups import make_groups
from hetfl.report.material import make_material
from hetfl.report.pictures import draw_all
from hetfl.runs.about import About
from hetfl.runs.metrics_file import MetricsFile
from hetfl.trainer.writing import TIMELINE_COLUMNS
from tests.conftest import small_net
from tests.report_cases import ROUNDS, settings, write_clients, write_levels, write_run

LEVELS = ["a", "b", "c"]
TENSORS = ["stages.0.conv.weight", "stages.1.conv.weight", "classifier.weight"]
CLUSTERS = [*((0, client, 0) for client in range(6)), (3, 4, 1), (3, 5, 1)]
COSTS = {
    "comm/up_bytes_total": 1e6,
    "comm/up_bytes": 1e6,
    "comm/up_ratio": 8.0,
    "comm/up_density": 0.05,
    "comm/down_bytes_total": 2e6,
    "compute/flops_total": 2e9,
    "sim/seconds_total": 3.0,
}


def full_run(folder: Path, seed: int = 0, top: float = 0.9, cost: float = 1.0, lr: float = 0.1) -> Path:
    """Write a run that has every table: levels, clients, heads, clusters, values, a budget and a density."""
    totals = {name: value * cost for name, value in COSTS.items()}
    config = settings(seed, lr=lr)
    write_run(folder, seed, top=top, per_round=totals, heads=("head_1", "head_2"), config=config)
    write_levels(folder, {"a": 18_000, "b": 5_000, "c": 1_200}, {"a": 4e6, "b": 2e6, "c": 5e5})
    write_clients(folder, [0.5, 0.75, 0.9, None, 1.0])
    about = About("hetfl 0.1.0", "2026-01-01 12:00", "hetfl fit", "4 cores", 10, 1000, 144, 360)
    (folder / "about.json").write_bytes(about.to_json())
    file = MetricsFile(folder / "metrics.csv")
    for step in range(ROUNDS):
        shared = {"comm/up_density": 0.2 / (step + 1), "threshold": 0.01 * (step + 1), "parts/density": 1 / (step + 1)}
        spent = {"budget/spent_bytes": 2e5 * (step + 1), "budget/planned_bytes": 2e5 * ROUNDS}
        densities = {f"budget/density_by_level/{level}": 0.1 * (i + 1) for i, level in enumerate(LEVELS)}
        clusters = {"cluster/count": 2, "cluster/accuracy/0": 0.1 * step, "cluster/accuracy/1": 0.05 * step}
        file.add(step, {**shared, **spent, **densities, **clusters})
    pd.DataFrame(CLUSTERS, columns=["round", "client", "cluster"]).to_csv(folder / "clusters.csv", index=False)
    (folder / "cluster_tree.csv").write_text("round,parent,child,stay,leave,similarity\n3,0,1,4,2,-0.5\n")
    worth = [(t, k, "loo", 0.1 * k + 0.01 * t) for t in range(ROUNDS) for k in range(4)]
    pd.DataFrame(worth, columns=["round", "client", "measure", "value"]).to_csv(folder / "values.csv", index=False)
    data = {"client": range(4), "samples": [5, 6, 7, 8], "divergence": [0.1, 0.2, 0.3, 0.2], "noise": [0, 0.2, 0.4, 1]}
    pd.DataFrame(data).to_csv(folder / "client_data.csv", index=False)
    return folder


def full_groups(root: Path) -> dict[str, list[Path]]:
    """Write two groups of three seeds; the second uploads a third of the bytes of the first."""
    return {
        "width": [full_run(root / "width" / str(seed), seed) for seed in range(3)],
        "depth": [full_run(root / "depth" / str(seed), seed, 0.7, 0.3 + 0.1 * seed, lr=0.5) for seed in range(3)],
    }


def report_figures(root: Path) -> dict[str, Figure]:
    """Return the figures of a report on :func:`full_groups`."""
    runs = {name: [analysis.load_run(folder) for folder in folders] for name, folders in full_groups(root).items()}
    drawings = draw_all(make_material(make_groups(runs), None), group_styles(list(runs)))
    return {key: drawing.figure for key, drawing in drawings.items()}


def of_run(draw: Callable[[analysis.Run], object], root: Path) -> Figure:
    """Return a figure of one run, from a function that returns the figure or its axes."""
    drawn = draw(analysis.load_run(full_run(root / "run")))
    return drawn if isinstance(drawn, Figure) else drawn.get_figure(root=True)  # type: ignore[attr-defined]


def two_runs(root: Path) -> Figure:
    folders = {"width": full_run(root / "w"), "depth": full_run(root / "d", top=0.7)}
    return analysis.plot_comparison({name: analysis.load_run(folder) for name, folder in folders.items()})


def drift(_: Path) -> Figure:
    rows = [(t, 0, level, 2, 0.1, 1.0, 0.1 * (i + 1) / (t + 1)) for t in range(5) for i, level in enumerate(LEVELS)]
    return analysis.plot_drift(
        pd.DataFrame(rows, columns=["step", "model", "level", "clients", "distance", "norm", "drift"])
    )


def channels(_: Path) -> Figure:
    rows = [
        (name, c, 1 + 0.1 * c + i, 0.1 * (c + 1), "cba"[min(c // 3, 2)])
        for i, name in enumerate(TENSORS[:2])
        for c in range(10)
    ]
    return analysis.plot_channel_norms(pd.DataFrame(rows, columns=["tensor", "channel", "norm", "share", "level"]))


def labels(_: Path) -> Figure:
    counts = {f"class_{k}": np.arange(8) * (k + 1) % 7 for k in range(10)}
    sizes = sum(counts.values())
    change = ["none", "90°"] * 4
    return analysis.plot_labels(
        pd.DataFrame({"client": range(8), "train_samples": sizes, "test_samples": 4, "change": change, **counts})
    )


def drawn_levels(_: Path) -> Figure:
    rows = [
        (t, k, "ab"[(t + k) % 2], ("slow", "fast")[k % 2], 2.0 + k, int(t == 2), 0.5, 0.1)
        for t in range(6)
        for k in range(4)
    ]
    return analysis.plot_drawn_levels(pd.DataFrame(rows, columns=ASSIGNMENT_COLUMNS), LEVELS)


def timeline(_: Path) -> Figure:
    rows = [(t, t % 4, LEVELS[t % 3], t, float(t), t + 1.5, 0.5, 1, 1) for t in range(9)]
    rows.append((9, 0, "a", 8, 9.0, 10.0, np.nan, np.nan, 0))  # type: ignore[arg-type]
    return analysis.plot_timeline(pd.DataFrame(rows, columns=list(TIMELINE_COLUMNS)), LEVELS)


def nets() -> dict[str, torch.nn.Module]:
    """Return the nets of three levels."""
    return {level: small_net(width=width) for level, width in zip(LEVELS, (1.0, 0.5, 0.25), strict=True)}


def loss_path(height: float) -> pd.DataFrame:
    alpha = np.linspace(0, 1, 5)
    return pd.DataFrame({"alpha": alpha, "loss": 1 + height * alpha * (1 - alpha), "accuracy": 0.5})


def client_view(_: Path) -> Figure:
    rows = [(LEVELS[k % 3], 10 * k + 5, 0.1 * k, 0.9 - 0.05 * k) for k in range(9)]
    return analysis.plot_client_view(
        pd.DataFrame(rows, columns=["level", "train_samples", "divergence", "own_accuracy"])
    )


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(40, 10, generator=torch.Generator().manual_seed(seed))


TARGETS = torch.arange(40) % 10
BY_LEVEL = {level: 3 * torch.eye(10)[TARGETS] + logits(i) for i, level in enumerate(LEVELS)}
HILLS = {"a to b": 0.5, "a to c": 1.0}
SPECTRA = pd.DataFrame({1: [1.0, 1.2, 1.3], 2: [0.5, 0.4, 0.1], 3: [0.1, 0.01, 0.001]}, index=[0, 4, 9])
DENSITY = pd.DataFrame(np.linspace(0, 0.4, 12).reshape(3, 4), index=TENSORS, columns=[0, 2, 4, 6])
CKA = [(f"stage {i}", one, other, 0.9 - 0.2 * i) for i in range(3) for one, other in ("ab", "ac", "bc")]
TABLE_OF_CLUSTERS = pd.DataFrame(CLUSTERS, columns=["round", "client", "cluster"])

FIGURES: dict[str, Callable[[Path], Figure]] = {
    "score_over_rounds": partial(of_run, analysis.plot_score_over_rounds),
    "score_over_bytes": partial(of_run, analysis.plot_score_over_bytes),
    "budget": partial(of_run, analysis.plot_budget),
    "sparsity": partial(of_run, analysis.plot_sparsity),
    "comparison": two_runs,
    "mean_holders": lambda _: analysis.plot_mean_holders(
        pd.DataFrame([[2.0, 3.0, 1.0], [2.0, 3.0, 0.0], [2.0, 0.0, 0.0]], index=TENSORS, columns=LEVELS)
    ),
    "holders": lambda _: analysis.plot_holders(
        {"stages.0.weight": torch.arange(12.0).reshape(4, 3), "head.weight": torch.ones(5, 4)}
    ),
    "drift": drift,
    "channel_norms": channels,
    "labels": labels,
    "drawn_levels": drawn_levels,
    "timeline": timeline,
    "assignments": lambda _: plot_assignments(TABLE_OF_CLUSTERS, ROUNDS),
    "cluster_tree": lambda _: analysis.plot_cluster_tree(TABLE_OF_CLUSTERS, ROUNDS),
    "predictions": lambda _: analysis.plot_predictions(torch.rand(10, 8, 8), torch.arange(10) % 7, torch.arange(10)),
    "reliability": lambda _: analysis.plot_reliability(BY_LEVEL, TARGETS),
    "class_accuracy": lambda _: analysis.plot_class_accuracy(analysis.class_accuracy(BY_LEVEL, TARGETS)),
    "level_similarity": lambda _: analysis.plot_level_similarity(
        pd.DataFrame(CKA, columns=["layer", "level", "other", "cka"])
    ),
    "heads": lambda _: analysis.plot_heads(torch.stack([logits(0), logits(1), logits(2)])),
    "spectra": lambda _: analysis.plot_spectra({"mean": SPECTRA, "product": 0.5 * SPECTRA}),
    "layer_density": lambda _: analysis.plot_layer_density(DENSITY),
    "residuals": lambda _: analysis.plot_residuals(
        pd.DataFrame({"clients": 3, "norm": [1.0, 2.0, 0.5], "rms": [0.01, 0.02, 0.005]}, index=TENSORS)
    ),
    "weight_quantiles": lambda _: analysis.plot_weight_quantiles(analysis.weight_quantiles(nets())),
    "weight_spectra": lambda _: analysis.plot_weight_spectra(analysis.weight_spectra(nets())),
    "distance_to_last": lambda _: analysis.plot_distance_to_last(
        pd.DataFrame({"a": [0.4, 0.2, 0.0], "b": [0.3, 0.2, 0.0], "c": [0.2, 0.1, 0.0]}, index=[0, 4, 9])
    ),
    "loss_paths": lambda _: analysis.plot_loss_paths({name: loss_path(height) for name, height in HILLS.items()}),
    "level_maps": lambda _: analysis.plot_level_maps(
        {"stages.0.weight": torch.arange(12).reshape(4, 3) % 3, "head.weight": torch.zeros(5, 4, dtype=torch.int64)},
        LEVELS,
    ),
    "confusion": lambda _: analysis.plot_confusion(
        {name: analysis.confusion(each, TARGETS) for name, each in BY_LEVEL.items()}
    ),
    "client_view": client_view,
    "values": lambda root: analysis.plot_values(
        analysis.load_values(full_run(root / "v")), analysis.load_client_data(root / "v")
    ),
}
"""A function per figure; its argument is an empty folder."""
