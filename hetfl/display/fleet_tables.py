"""The clients' devices, and how long rounds take them, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from rich.table import Table

from hetfl.accounting import Forecast
from hetfl.display.formats import cell, format_quantity, format_seconds, plain_table
from hetfl.fleet import Fleet, LevelAssignment
from hetfl.fleet.numbers import FOREVER

SHOWN: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "throughput": ("speed", lambda value: format_quantity(value, "FLOP/s")),
    "downlink": ("down", lambda value: format_quantity(8 * value, "bit/s")),
    "uplink": ("up", lambda value: format_quantity(8 * value, "bit/s")),
    "availability": ("within reach", lambda value: f"{100 * value:.3g} %"),
    "failure_rate": ("rounds failed", lambda value: f"{100 * value:.3g} %"),
}
"""Of a kind of devices: headings, and how to write the values."""
QUANTILES = {"fastest": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "slowest": 1.0}
"""Of the seconds of a round."""


def fleet_table(fleet: Fleet) -> Table:
    """Return a table of the kinds of devices: how many clients have one, and the medians of what these can do.

    Args:
        fleet: the fleet, set up.
    """
    devices, counts = fleet.devices, np.bincount(fleet.devices.kind, minlength=len(fleet.devices.kinds))
    table = plain_table(f"{type(fleet).__name__}: devices, medians of each kind")
    table.add_column("kind", no_wrap=True)
    for heading in ("clients", *(heading for heading, _ in SHOWN.values())):
        table.add_column(heading, justify="right", no_wrap=True)
    for number in np.flatnonzero(counts).tolist():
        own = devices.kind == number
        cells = [form(float(np.median(getattr(devices, name)[own]))) for name, (_, form) in SHOWN.items()]
        table.add_row(cell(devices.kinds[number]), f"{counts[number]:,}", *cells)
    return table


def seconds_table(assignment: LevelAssignment, forecast: Forecast, deadline: float | None) -> Table:
    """Return a table of the seconds that a round takes the clients of each level, as the first round has them.

    Args:
        assignment: who has which level, set up.
        forecast: of the module.
        deadline: after which updates are dropped; None: there is none.
    """
    late = [] if deadline is None else [f"after {format_seconds(deadline)}"]
    table = plain_table("A round on these devices, whole models both ways, by the level that clients begin with")
    table.add_column("level", no_wrap=True)
    for heading in ("clients", *QUANTILES, *late):
        table.add_column(heading, justify="right", no_wrap=True)
    positions_N = assignment.positions(0)
    for position, level in enumerate(assignment.names):
        own = np.flatnonzero(positions_N == position)
        seconds = forecast.seconds(own, positions_N[own], None)
        cells = [format_seconds(np.quantile(seconds, share)) if len(own) else "–" for share in QUANTILES.values()]
        if deadline is not None:
            cells.append(f"{np.mean(seconds > deadline):.1%}" if len(own) else "–")
        table.add_row(cell(level), f"{len(own):,}", *cells)
    return table


def comings_and_goings(fleet: Fleet) -> str | None:
    """Return one line about who joins and leaves; None if everybody is there from the first round to the last."""
    joining, leaving = int((fleet.devices.first_round > 0).sum()), int((fleet.devices.last_round < FOREVER).sum())
    return f"{joining:,} clients join after the first round, {leaving:,} leave" if joining or leaving else None
