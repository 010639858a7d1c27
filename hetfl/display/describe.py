"""The description of a run before its start."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from hetfl.data import FederatedDataModule
from hetfl.display.fleet_tables import comings_and_goings, fleet_table, seconds_table
from hetfl.display.formats import cell, format_quantity, format_share, plain_table, print_table
from hetfl.federation import FederatedModule
from hetfl.levels.budgets import UNITS, Budgets
from hetfl.levels.table import level_costs


def describe(module: FederatedModule, data: FederatedDataModule, console: Console | None = None) -> None:
    """Print the levels with their costs, their budgets if there are any, the fleet, the data and the methods in use.

    Args:
        module: the module, after setup.
        data: the data module, after setup.
        console: console to print to; None: standard output.
    """
    console = console or Console()
    print_table(cost_table(module), console)
    if module.levels.budgets is not None:
        print_table(budget_table(module, module.levels.budgets), console)
    print_table(fleet_table(module.fleet), console)
    print_table(seconds_table(module.assignment, module.forecast, module.ledger.deadline), console)
    if moves := comings_and_goings(module.fleet):
        console.print(moves)
    console.print(data.summary(), markup=False)
    clustering = f", {type(module.clustering).__name__}" if module.clustering.several(len(module.models)) else ""
    if module.clustering.asks:
        clustering += f" (each client downloads {len(module.models)} models and tests them on its data)"
    down = f"{module.downlink.words} on every download, " if module.downlink.codes else ""
    console.print(
        f"{module.selection.clients_per_round} of {data.num_clients} clients a round, "
        f"{module.uplink.compressor.title} on every upload, {down}"
        f"{module.executor.words}{clustering}"
    )
    if not module.schedule.in_step:
        console.print(f"{module.schedule.describe()}: a round is one server step", markup=False)
    objective = module.objective
    console.print(f"{type(objective).__name__}: models are compared by {objective.headline.words}")


def cost_table(module: FederatedModule) -> Table:
    """Return a table of the levels: sizes, parameters, FLOPs per sample, bytes per round.

    There is no column for width, depth, density or rank if all levels have the same. If the compressor has a density, a
    column has the expected bytes of an upload.
    """
    uploads = module.task_parts.upload_sizes(module.data)
    rows = level_costs(module.levels, uploads, module.forecast.down_bytes())
    depths = any(row.depth is not None for row in rows)
    widths = not depths or any(row.width != 1.0 for row in rows)
    density, bits = module.uplink.compressor.planned_density, module.uplink.compressor.value_bits
    itemsize = bits / 8 if bits else 2 if module.uplink.half_precision else 4
    table = plain_table(f"{type(module).__name__}: levels, FLOP per sample, bytes per round")
    table.add_column("level", no_wrap=True)
    sparse = any(row.density != 1.0 for row in rows)
    ranks = any(row.rank is not None for row in rows)
    headings = (
        ["width"] * widths
        + ["depth"] * depths
        + ["density"] * sparse
        + ["rank"] * ranks
        + ["parameters", "share", "FLOP\nforward", "FLOP\ntraining"]
    )
    headings += ["bytes\ndown", "bytes\nup"] + ([] if density is None else [f"up, at\n{density:.3g}"])
    _add_columns(table, headings)
    for row in rows:
        cells = [f"{row.width:.4g}"] * widths + ["all" if row.depth is None else str(row.depth)] * depths
        cells += [f"{row.density:.4g}"] * sparse + ["all" if row.rank is None else str(row.rank)] * ranks
        cells += [f"{row.parameters:,}", format_share(row.parameters / rows[0].parameters)]
        cells += [format_quantity(flops, "") for flops in (row.forward_flops, row.training_flops)]
        sizes: list[float] = [row.down_bytes, row.up_bytes]
        sizes += [] if density is None else [uploads[row.level].sparse(density, itemsize)]
        table.add_row(cell(row.level), *cells, *(format_quantity(size, "B") for size in sizes))
    return table


def budget_table(module: FederatedModule, budgets: Budgets) -> Table:
    """Return a table of the cost limit and the cost of each level."""
    table = plain_table(f"Budgets: {UNITS[budgets.by]}")
    table.add_column("level", no_wrap=True)
    _add_columns(table, ["budget", "at most", "cost", "used", "of the net"])
    for name, allowed in module.levels.allowances.items():
        numbers = (f"{allowed.budget:g}", f"{allowed.limit:,.0f}", f"{allowed.cost:,.0f}")
        table.add_row(cell(name), *numbers, format_share(allowed.cost / allowed.limit), str(allowed.size))
    return table


def _add_columns(table: Table, headings: Sequence[str]) -> None:
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
