"""What a run would be, before anything runs."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from hetfl import wire
from hetfl.data import FederatedDataModule
from hetfl.federation import FederatedModule


def describe(module: FederatedModule, data: FederatedDataModule, console: Console | None = None) -> None:
    """Print the levels with their costs, then the data.

    Args:
        module: the module, set up.
        data: the data module, set up.
        console: where to print; None: standard output.
    """
    console = console or Console()
    table = Table(
        title=f"{type(module).__name__}: levels, and what one sample and one message cost", title_justify="left"
    )
    table.add_column("level")
    for column in ("size", "parameters", "share", "MFLOP\nforward", "MFLOP\ntraining", "kB down", "kB up,\ndense"):
        table.add_column(column, justify="right", no_wrap=True)
    whole = sum(p.numel() for p in module.net.parameters())
    for name, level in module.levels.items():
        parameters = sum(p.numel() for p in module.levels.build(name).parameters())
        forward, training = module.flops[name]
        kilobytes = f"{wire.dense_size(module.levels.sizes[name]) / 1e3:.1f}"
        table.add_row(
            name,
            f"{level.width:g}" if level.depth is None else f"{level.width:g} x {level.depth}",
            f"{parameters:,}",
            f"{parameters / whole:.1%}",
            f"{forward / 1e6:.3g}",
            f"{training / 1e6:.3g}",
            kilobytes,
            kilobytes,
        )
    console.print(table)
    console.print(data.summary())
    console.print(
        f"{module.selection.clients_per_round} of {data.num_clients} clients a round, "
        f"{type(module.uplink.compressor).__name__} on every upload, {type(module.executor).__name__} executor"
    )
