"""How near local training is to the limits of the machine: its matrix throughput and its memory bandwidth.

The limit of a level is the sum of two times per sample. *Arithmetic* is the time of its convolutions and linear layers,
forward and backward, each alone, in the batch and memory format in which it is fastest on all cores. *Memory* is the
traffic of everything else at the speed of a large copy: every other layer reads its input and writes its output, and
reads both gradients and its input in the backward pass; every step reads and writes parameters, gradients and momenta.
No implementation in small steps reaches the sum, because small batches are slower and passes do not overlap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing

import torch
from rich.console import Console
from rich.table import Table
from round import Federation
from timing import no_collector, parser, threads
from torch import Tensor, nn
from work import Setting

from hetfl.cores import usable_cores
from hetfl.local import Sequential, Stacked, Workers
from hetfl.local.flops import flops_per_sample
from hetfl.models.layers import Scaler

BATCHES = (32, 128, 512)
COPIED_BYTES = 1 << 28
PASSES_OF_A_STEP = 8  # clipping reads and writes gradients; SGD reads three vectors and writes two; zeroing writes one
FLOAT_BYTES = 4


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Return the least seconds of several calls, after one that is not timed."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def bytes_per_second(repeats: int) -> float:
    """Return the bytes that a copy reads and writes in a second."""
    source = torch.zeros(COPIED_BYTES // FLOAT_BYTES)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / fastest(lambda: target.copy_(source), repeats)


def leaves(net: nn.Module, image: Tensor) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """Yield layers without layers of their own, with input and output for one image."""
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda layer, given, out: seen.append((layer, given[0], out)))
        for layer in net.modules()
        if not list(layer.children())
    ]
    with torch.no_grad():
        net(image)
    for hook in hooks:
        hook.remove()
    yield from seen


def seconds_of_layer(layer: nn.Module, shape: torch.Size, first: bool, repeats: int) -> float:
    """Return the least seconds per sample of a layer, forward and backward; the first layer needs no input gradient."""
    best = float("inf")
    for batch in BATCHES:
        for order in (torch.contiguous_format, torch.channels_last)[: 2 if len(shape) == 4 else 1]:
            inputs = torch.randn(batch, *shape[1:]).to(memory_format=order).requires_grad_(not first)
            moved = layer.to(memory_format=order)
            gradient = torch.randn_like(moved(inputs))
            seconds = fastest(lambda i=inputs, g=gradient, m=moved: m(i).backward(g), repeats)  # type: ignore[misc]
            best = min(best, seconds / batch)
    return best


def limit(setting: Setting, level: str, bandwidth: float, repeats: int) -> tuple[float, float]:
    """Return the seconds of arithmetic and of memory per sample."""
    net = setting.level_net(level)
    arithmetic, passed, first = 0.0, 0, True
    for layer, given, out in leaves(net, torch.rand(1, setting.channels, setting.size, setting.size)):
        if any(p.dim() > 1 for p in layer.parameters()):
            arithmetic += seconds_of_layer(layer, given.shape, first, repeats)
            first = False
        elif not isinstance(layer, Scaler):
            passed += 3 * given.numel() + 2 * out.numel()
    parameters = sum(p.numel() for p in net.parameters()) * PASSES_OF_A_STEP / setting.batch_size
    return arithmetic, FLOAT_BYTES * (passed + parameters) / bandwidth


def measured(setting: Setting, cores: int, blocks: int) -> dict[str, float]:
    """Return the least seconds per sample of local training, by executor."""
    makes = {
        f"Workers({cores})": lambda: Workers(cores),
        f"Workers({cores}, Stacked)": lambda: Workers(cores, Stacked(-(-setting.cohort // cores))),
        "Sequential": Sequential,
    }
    best: dict[str, float] = {}
    for name, make in makes.items():
        with closing(Federation(setting, setting.data(), make())) as federation, no_collector():
            rounds = iter(range(2 + blocks))
            federation.local_training(next(rounds))
            seconds = fastest(lambda f=federation, r=rounds: f.local_training(next(r)), blocks)  # type: ignore[misc]
        best[name] = seconds / (setting.cohort * setting.samples * setting.epochs)
    return best


def main() -> None:
    """Run from the command line."""
    options = parser(__doc__, blocks=10)
    options.add_argument("--levels", default="abcde", help="levels (default: %(default)s)")
    given = options.parse_args()
    cores = usable_cores()
    # Processes fork before this process starts threads.
    times = {level: measured(Setting(level), cores, given.blocks) for level in given.levels}
    table = Table("level", "executor", title=f"{cores} cores; per sample")
    for column in ("MFLOP", "GFLOP/s", "arithmetic µs", "memory µs", "measured µs", "part of the limit"):
        table.add_column(column, justify="right")
    with threads(cores):
        bandwidth = bytes_per_second(given.blocks)
        for level, of_executors in times.items():
            setting = Setting(level)
            _, flops = flops_per_sample(setting.level_net(level), torch.zeros(2, 1, setting.size, setting.size))
            arithmetic, memory = limit(setting, level, bandwidth, given.blocks)
            for name, seconds in of_executors.items():
                cells = (flops / 1e6, flops / seconds / 1e9, arithmetic * 1e6, memory * 1e6, seconds * 1e6)
                table.add_row(level, name, *(f"{cell:.1f}" for cell in cells), f"{(arithmetic + memory) / seconds:.2f}")
            table.add_section()
    console = Console()
    console.width = max(console.width, 120)
    console.print(table)
    console.print(f"A large copy moves {bandwidth / 1e9:.1f} GB/s.")


if __name__ == "__main__":
    main()
