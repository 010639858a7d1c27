"""The summary of a run in the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Table
from torch import nn

from hetfl.display.formats import cell, format_quantity, format_seconds, format_share, plain_table, print_table
from hetfl.federation import FederatedModule
from hetfl.printable import printable
from hetfl.runs.headline import ACCURACY, Headline
from hetfl.runs.metrics_file import HEAD
from hetfl.types import Level

TOTAL = "comm/down_bytes_total"
"""A total that every validation of a net with static batch norm raises."""


class _Leveled(Protocol):
    """The interface of a module that the summary needs."""

    levels: Mapping[str, Level]

    def submodel(self, level: str) -> nn.Module: ...


class RunSummary(Callback):
    """Prints the scores of each level and the costs of the run, after training, a test or a separate validation.

    The module must have ``levels`` and ``submodel(level)``, like :class:`hetfl.FederatedModule`.

    Args:
        after_fit: print after training; set it to False if a test follows, because its summary contains everything.
    """

    def __init__(self, after_fit: bool = True) -> None:
        super().__init__()
        self.after_fit = after_fit
        self._started = 0.0
        self._seconds = 0.0
        self._metrics: dict[str, float] = {}
        self._validated: dict[str, float] = {}  # metrics at the end of training's last validation

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, unless the validation is a part of training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._started = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary; of a validation that is a part of training, keep the metrics."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._note(trainer)
            self._print(trainer, pl_module)
        else:
            self._validated = _values(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary, unless a test follows.

        After a validation Lightning puts back what its round had logged before, without the validation's costs. Totals
        never fall, so those of the last validation are used if they are larger.
        """
        self._note(trainer)
        if self._validated.get(TOTAL, 0.0) > self._metrics.get(TOTAL, 0.0):
            self._metrics |= self._validated
        if self.after_fit:
            self._print(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary; after training it also has the metrics of training."""
        self._note(trainer)
        self._print(trainer, pl_module)

    def _note(self, trainer: Trainer) -> None:
        """Keep time and metrics, because Lightning discards those of training when a test starts."""
        self._seconds += time.monotonic() - self._started
        self._metrics |= _values(trainer)

    def _print(self, trainer: Trainer, module: LightningModule) -> None:
        folder = trainer.log_dir if trainer.loggers else None  # on every rank: Lightning broadcasts it
        if not trainer.is_global_zero:
            return
        console = Console()
        headline = cast(FederatedModule, module).objective.headline
        print_table(level_table(cast(_Leveled, module), self._metrics, headline), console)
        texts = totals(self._metrics, self._seconds, headline)
        width = max(18, *(len(name) + 1 for name in texts))
        for name, text in texts.items():
            console.print(f"{name:<{width}}{text}", markup=False, highlight=False)
        if folder is not None:
            console.print(f"{'run folder':<{width}}{printable(folder)}", markup=False, highlight=False, soft_wrap=True)


def level_table(module: _Leveled, metrics: Mapping[str, float], headline: Headline = ACCURACY) -> Table:
    """Return a table of the levels, the global model and its heads: sizes, parameters and scores."""
    table = plain_table("Levels")
    sparse = any(level.density != 1.0 for level in module.levels.values())
    ranks = any(level.rank is not None for level in module.levels.values())
    scores = [f"{stage} {headline.words}" for stage in ("val", "test")]
    headings = ["level", "width", "depth", *["density"] * sparse, *["rank"] * ranks, "parameters", *scores]
    for heading in headings[:-2]:
        table.add_column(heading, justify="left" if heading == "level" else "right", no_wrap=True)
    for heading in scores:  # a long heading is wrapped in a narrow terminal
        table.add_column(cell(heading), justify="right", min_width=len("100.00 %"))
    for name, level in module.levels.items():
        depth = "all" if level.depth is None else str(level.depth)
        parameters = f"{sum(parameter.numel() for parameter in module.submodel(name).parameters()):,}"
        sizes = [f"{level.width:g}", depth, *[f"{level.density:g}"] * sparse]
        sizes += ["all" if level.rank is None else str(level.rank)] * ranks
        table.add_row(cell(name), *sizes, parameters, *_scores(metrics, name, headline))
    none = [""] * (len(headings) - 3)
    table.add_section()
    table.add_row("global", *none, *_scores(metrics, "", headline))
    numbers = {int(column.rpartition("/")[2]) for column in metrics if f"/{headline.name}_by_head/" in column}
    for number in sorted(numbers):
        table.add_row(f"head {number}", *none, *_scores(metrics, f"{HEAD}{number}", headline))
    return table


def _values(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _scores(metrics: Mapping[str, float], part: str, headline: Headline) -> list[str]:
    names = (headline.column(stage, part) for stage in ("val", "test"))
    return [headline.shown(metrics[name]) if name in metrics else "–" for name in names]


def totals(metrics: Mapping[str, float], seconds: float, headline: Headline = ACCURACY) -> dict[str, str]:
    """Return scores over clients and total costs of a run as text, by name; unmeasured values are left out.

    Args:
        metrics: the latest value of each metric, by its name in ``metrics.csv``.
        seconds: wall time in seconds.
        headline: the score by which models are compared.
    """
    shown = headline.shown
    formats: dict[str, tuple[str, Callable[[float], str]]] = {
        f"local {headline.words}": (headline.local("mean"), lambda value: f"{shown(value)} (mean over clients)"),
        "worst tenth": (headline.local("worst10"), lambda value: f"{shown(value)} (mean over the worst clients)"),
        f"personal {headline.words}": (headline.personal, lambda value: f"{shown(value)} (own levels and tensors)"),
        "uploaded": ("comm/up_bytes_total", lambda value: format_quantity(value, "B")),
        "downloaded": ("comm/down_bytes_total", lambda value: format_quantity(value, "B")),
        "compression": (
            "comm/up_ratio_total",
            lambda value: f"uploads of {value:.1f}× fewer bytes than dense float32 updates",
        ),
        "computed": ("compute/flops_total", lambda value: format_quantity(value, "FLOP")),
        "simulated time": ("sim/seconds_total", format_seconds),
    }
    texts = {name: text(metrics[column]) for name, (column, text) in formats.items() if column in metrics}
    for unit, short, word in (("bytes", "B", ""), ("entries", "", " entries")):
        if (planned := metrics.get(f"budget/planned_{unit}", 0.0)) > 0:
            spent = metrics[f"budget/spent_{unit}"]
            amounts = [f"{format_quantity(amount, short).strip()}{word}" for amount in (spent, planned)]
            texts["upload budget"] = f"{amounts[0]} spent of {amounts[1]} planned ({format_share(spent / planned)})"
    lost = metrics.get("sim/lost_total", 0.0)
    if lost:
        texts["updates lost"] = f"{lost:.0f} (too late, or the client failed)"
    return {**texts, "wall time": format_seconds(seconds)}
