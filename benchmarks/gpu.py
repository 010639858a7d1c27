"""Rounds on a GPU: correctness against the CPU, speed beside a plain loop, and steps that wait for the GPU.

All parts take a few minutes on one GPU. ``--device cpu`` runs the checks alone, without a GPU.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from gpu_checks import Check, checks
from rich.console import Console
from rich.table import Table
from round import Federation
from timing import Row, interleaved, parser, record, rows, show
from work import Setting, bare_loop, bare_work

from hetfl.local import Auto, Executor, Sequential, Stacked

CLIENTS = 100
GOALS = {"d": 20.0, "a": 3.0}
"""By level, how many times as fast as the plain loop the fastest executor should be."""
EXECUTORS: dict[str, Callable[[], Executor]] = {
    "Sequential": Sequential,
    "Stacked(16)": Stacked,
    f"Stacked({CLIENTS})": partial(Stacked, CLIENTS),
    f"Auto({CLIENTS})": partial(Auto, CLIENTS, 1),
}
GRAPHS = "Captured graphs: no executor of hetfl captures its steps as CUDA graphs or compiles them; nothing to measure."
ROOT = str(Path(__file__).resolve().parents[1])
PACKAGE = tuple(f"{ROOT}/{folder}/" for folder in ("hetfl", "aggregators", "models"))


def ready(device: str) -> None:
    """Wait until the device has done its work."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def cohort_rounds(setting: Setting, device: str, blocks: int) -> list[Row]:
    """Return the times of local training of a cohort by a plain loop and by executors, whose deltas must agree.

    Args:
        setting: the work of a round.
        device: where the nets and the plain loop's data are.
        blocks: number of timed blocks.

    Raises:
        RuntimeError: the deltas of a side differ from those of the plain loop by more than a twentieth.
    """
    data, warmup = setting.data(), 2
    federations = {name: Federation(setting, data, make(), device=device) for name, make in EXECUTORS.items()}
    bare = bare_loop(setting, data, federations["Sequential"].models.tensors[0], device=device)
    first = [torch.cat([tensor.flatten() for tensor in delta]) for delta in bare.round(bare_work(setting, 0))]
    sides: dict[str, Callable[[int], object]] = {"plain loop": lambda number: bare.round(bare_work(setting, number))}
    for name, federation in federations.items():
        results = federation.local_training(0)
        apart = max(
            float((result.vector - delta).norm() / delta.norm()) for result, delta in zip(results, first, strict=True)
        )
        if not apart <= 5e-2:
            raise RuntimeError(f"Expected the plain loop's deltas from {name} but got a relative difference of {apart}")
        sides[name] = federation.local_training
    numbers = {name: iter(range(warmup + blocks)) for name in sides}

    def run(name: str) -> object:
        result = sides[name](next(numbers[name]))
        ready(device)
        return result

    times = interleaved({name: partial(run, name) for name in sides}, blocks=blocks, warmup=warmup)
    for federation in federations.values():
        federation.close()
    return rows(f"{setting.cohort} clients, level {setting.levels}", times)


def verdict(level: str, measured: Sequence[Row]) -> str:
    """Return in words how much faster than the plain loop the fastest executor is."""
    best = min(measured[1:], key=lambda row: row.ratio_of_medians)
    times, least, goal = 1 / best.ratio_of_medians, 1 / best.ratio_of_minima, GOALS[level]
    met = "met" if times >= goal else "missed"
    return (
        f"Level {level}: {best.side} is {times:.1f} times as fast as the plain loop by medians, {least:.1f} by minima; "
        f"the goal of {goal:g} is {met}."
    )


@contextmanager
def synchronisations() -> Iterator[Counter[str]]:
    """Count the operations that wait for the GPU, by the line of the package that asked for them."""
    counts: Counter[str] = Counter()

    def note(message: Warning | str, *_: object, **__: object) -> None:
        if "synchroniz" in str(message):
            counts[_place()] += 1

    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counts
        finally:
            torch.cuda.set_sync_debug_mode(mode)


def _place() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            return f"{name.removeprefix(ROOT + '/')}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside of the package"


def waits(make: Callable[[], Executor], epochs: int) -> Counter[str]:
    """Return the synchronisations in the second whole round of ten clients of level d."""
    setting = replace(Setting("d"), epochs=epochs)
    with closing(Federation(setting, setting.data(), make(), device="cuda")) as federation:
        list(federation.whole_round(0))
        with synchronisations() as counts:
            list(federation.whole_round(1))
    return counts


def print_checks(results: Sequence[Check], console: Console) -> None:
    """Print the comparisons with the CPU."""
    table = Table("kind", "name", "largest difference", "", title="compared with the CPU in float64")
    for check in results:
        table.add_row(check.kind, check.name, f"{check.difference:.1e}", "ok" if check.passed else "DIFFERS")
    console.print(table)


def print_waits(counted: Mapping[str, Mapping[str, int]], console: Console) -> None:
    """Print the synchronisations of rounds with one and with two epochs, by line."""
    table = Table("line of the package", *counted, title="synchronisations in a round of 10 clients, 5 steps an epoch")
    for line in sorted({line for counts in counted.values() for line in counts}):
        table.add_row(line, *(str(counts.get(line, 0)) for counts in counted.values()))
    table.add_section()
    table.add_row("all", *(str(sum(counts.values())) for counts in counted.values()))
    console.print(table)


def measured_on_gpu(blocks: int, console: Console) -> dict[str, object]:
    """Measure and print speed and synchronisations; return all figures."""
    results, lines = list[Row](), list[str]()
    for level in GOALS:
        of_level = cohort_rounds(Setting(level, clients=CLIENTS, cohort=CLIENTS), "cuda", blocks)
        results, lines = results + of_level, [*lines, verdict(level, of_level)]
    counted = {
        f"{name}, {epochs} epoch{'s' * (epochs > 1)}": waits(EXECUTORS[name], epochs)
        for name in ("Sequential", "Stacked(16)")
        for epochs in (1, 2)
    }
    show(results)
    print_waits(counted, console)
    for line in (*lines, GRAPHS):
        console.print(line, highlight=False)
    return {**record(results), "gpu": torch.cuda.get_device_name(), "verdicts": lines, "synchronisations": counted}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return 0, or 1 if a check failed, or 2 without a GPU."""
    options = parser(__doc__, blocks=7)
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: checks alone")
    given = options.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("Expected a GPU that torch can use but got none: --device cpu runs the checks alone", file=sys.stderr)
        return 2
    console, start = Console(), time.perf_counter()
    if not console.is_terminal:
        console.width = 140  # rows must not be wrapped in a file
    results = checks(given.device)
    print_checks(results, console)
    figures: dict[str, object] = {"checks": [asdict(check) for check in results]}
    if given.device == "cuda":
        figures |= measured_on_gpu(given.blocks, console)
    figures["seconds"] = time.perf_counter() - start
    console.print(f"{figures['seconds']:.0f} seconds in all", highlight=False)
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0 if all(check.passed for check in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
