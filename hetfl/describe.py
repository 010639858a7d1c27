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
    table = Table(title=f"{type(module).__name__}: levels", title_justify="left")
    for column in (
        "level",
        "width",
        "depth",
        "parameters",
        "of global",
        "MFLOP/sample\nforward",
        "MFLOP/sample\ntraining",
    ):
        table.add_column(column, justify="left" if column == "level" else "right")
    for column in ("kB down\na round", "kB up\na round, dense", "MB of\nstate a client"):
        table.add_column(column, justify="right")
    whole = sum(p.numel() for p in module.net.parameters())
    for name, level in module.levels.items():
        size = module.levels.sizes[name]
        parameters = sum(p.numel() for p in module.levels.build(name).parameters())
        forward, training = module.flops[name]
        message = wire.dense_size(size, 0) / 1e3
        table.add_row(
            name,
            f"{level.width:g}",
            "-" if level.depth is None else str(level.depth),
            f"{parameters:,}".replace(",", " "),
            f"{parameters / whole:.1%}",
            f"{forward / 1e6:.3g}",
            f"{training / 1e6:.3g}",
            f"{message:,.1f}",
            f"{message:,.1f}",
            # Weights, gradients, momentum, anchor, delta and residual: six float32 vectors.
            f"{6 * 4 * size / 1e6:.3g}",
        )
    console.print(table)
    console.print(data.summary())
    console.print(
        f"{module.selection.clients_per_round} of {data.num_clients} clients a round, "
        f"{type(module.uplink.compressor).__name__} on every upload"
    )
