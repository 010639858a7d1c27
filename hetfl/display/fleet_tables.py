"""Tables of the clients' devices, and of the duration of a round on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from rich.table import Table

from hetfl.accounting import Forecast
from hetfl.display.formats import cell, format_quantity, format_seconds, format_share, plain_table
from hetfl.fleet import Fleet, LevelAssignment
from hetfl.fleet.numbers import FOREVER

SHOWN: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "throughput": ("speed", lambda value: format_quantity(value, "FLOP/s")),
    "downlink": ("down", lambda value: format_quantity(8 * value, "bit/s")),
    "uplink": ("up", lambda value: format_quantity(8 * value, "bit/s")),
    "availability": ("within\nreach", format_share),
    "failure_rate": ("rounds\nfailed", format_share),
}
"""Headings and formats of the properties of a kind of devices."""
QUANTILES = {"fastest": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "slowest": 1.0}
"""Quantiles of the seconds of a round."""


def fleet_table(fleet: Fleet) -> Table:
    """Return a table of the kinds of devices: number of clients, and medians of speed, bandwidth and availability.

    Args:
        fleet: the fleet, after setup.
    """
    devices, counts = fleet.devices, np.bincount(fleet.devices.kind, minlength=len(fleet.devices.kinds))
    table = plain_table(f"{type(fleet).__name__}: devices, medians of each kind")
    table.add_column("kind", no_wrap=True)
    for heading in ("clients", *(heading for heading, _ in SHOWN.values())):
        table.add_column(heading, justify="right", no_wrap=True)
    for number in np.flatnonzero(counts).tolist():
        of_kind = devices.kind == number
        cells = [form(float(np.median(getattr(devices, name)[of_kind]))) for name, (_, form) in SHOWN.items()]
        table.add_row(cell(devices.kinds[number]), f"{counts[number]:,}", *cells)
    return table


def seconds_table(assignment: LevelAssignment, forecast: Forecast, deadline: float | None) -> Table:
    """Return a table of the seconds of a round for the clients of each level, with the levels of the first round.

    Args:
        assignment: the assignment of levels to clients, after setup.
        forecast: the forecast of the module.
        deadline: seconds after which updates are dropped; None: no deadline.
    """
    late = [] if deadline is None else [f"after {format_seconds(deadline)}"]
    table = plain_table("Duration of a round on these devices, with dense messages, by level in the first round")
    table.add_column("level", no_wrap=True)
    for heading in ("clients", *QUANTILES, *late):
        table.add_column(heading, justify="right", no_wrap=True)
    positions_N = assignment.positions(0)
    for position, level in enumerate(assignment.names):
        clients = np.flatnonzero(positions_N == position)
        seconds = forecast.seconds(clients, positions_N[clients], None)
        cells = [format_seconds(np.quantile(seconds, share)) if len(clients) else "–" for share in QUANTILES.values()]
        if deadline is not None:
            cells.append(format_share(float(np.mean(seconds > deadline))) if len(clients) else "–")
        table.add_row(cell(level), f"{len(clients):,}", *cells)
    return table


def comings_and_goings(fleet: Fleet) -> str | None:
    """Return one line with the numbers of clients that join late or leave; None if there are none."""
    joining, leaving = int((fleet.devices.first_round > 0).sum()), int((fleet.devices.last_round < FOREVER).sum())
    return f"{joining:,} clients join after the first round, {leaving:,} leave" if joining or leaving else None
