"""Rules for adapters of several ranks on one frozen net: score over uploaded bytes, with and without γ-FedHT.

``python benchmarks/lora_ranks.py digits --out lora_digits`` trains the net of ``experiment/lora_digits_base``, exports
it, and runs ``experiment/lora_digits`` once per rule and seed; ``text`` does the same with the files of ``lora_text``.
Every run is that of ``hetfl fit -c experiment/lora_digits -c FILE``, in this process, and has its own run folder in
``--out``. Finished runs are not repeated. The table has means over seeds and, behind ±, the standard deviation; the
uploads are those of a run. They leave out the frozen net, which clients have.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd

from hetfl.cli import main as hetfl

RULES = {
    "holder mean": [],
    "freeze A": ["experiment/lora_freeze_a"],
    "product mean": ["experiment/lora_product_mean"],
    "zero-padded mean": ["experiment/lora_zero_pad"],
    "exclusive": ["experiment/lora_exclusive"],
    "smallest rank for all": ["experiment/lora_smallest"],
    "alternating": ["experiment/lora_alternating"],
    "ordered ranks": ["experiment/lora_ordered"],
    "HetLoRA": ["experiment/lora_het_lora"],
    "FedHera": ["experiment/lora_fed_hera"],
    "FLoRA": ["experiment/lora_flora"],
    "holder mean, γ-FedHT": ["compressor/gamma_fedht"],
    "freeze A, γ-FedHT": ["experiment/lora_freeze_a", "compressor/gamma_fedht"],
    "zero-padded mean, γ-FedHT": ["experiment/lora_zero_pad", "compressor/gamma_fedht"],
}
"""By name of a rule, the files that are stacked on the experiment."""
SCORES = {"digits": "accuracy", "text": "perplexity"}


def run(files: list[str], *options: str) -> None:
    """Run ``hetfl fit`` in this process, without its output."""
    given = [part for file in files for part in ("-c", file)]
    with redirect_stdout(io.StringIO()):
        hetfl(["fit", *given, "--plots=false", "--trainer.enable_progress_bar=false", *options])


def base(kind: str) -> None:
    """Train and export the frozen net, unless it is there."""
    target = Path(f"lora_{kind}_base.safetensors")
    if target.exists():
        return
    run([f"experiment/lora_{kind}_base"], "--trainer.logger.root=base")
    folder = max(Path("base").rglob("config.yaml"), key=os.path.getmtime).parent
    checkpoint = folder / "checkpoints" / "last.ckpt"
    with redirect_stdout(io.StringIO()):
        hetfl(["export", "-c", f"{folder}/config.yaml", "--ckpt_path", f"{checkpoint}", "--level=a", f"--out={target}"])


def rows(kind: str, rule: str, seed: int, rounds: int | None) -> pd.DataFrame:
    """Return the rows of a run, which is run first if it is not there."""
    name = f"{rule.replace(' ', '_').replace(',', '')}-{seed}"
    if not (done := list(Path(name).rglob("finished"))):
        options = (
            []
            if rounds is None
            else [
                f"--trainer.max_epochs={rounds}",
                f"--model.local.scheduler.T_max={rounds}",
            ]
        )
        run(
            [f"experiment/lora_{kind}", *RULES[rule]],
            f"--seed_everything={seed}",
            f"--trainer.logger.root={name}",
            *options,
        )
        done = [max(Path(name).rglob("metrics.csv"), key=os.path.getmtime).with_name("finished")]
        done[0].touch()
    return pd.read_csv(done[0].with_name("metrics.csv"))


def written(values: list[float], format: str) -> str:
    """Return mean and standard deviation as text."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{format}} ± {spread:{format}}"


def line(rule: str, tables: list[pd.DataFrame], score: str) -> str:
    """Return a row of the table: scores of the largest and the smallest rank, and the bytes of all uploads."""
    levels = sorted(name for name in map(str, tables[0]) if name.startswith(f"test/{score}_by_level/"))
    cells = [written([float(t[name].dropna().iloc[-1]) for t in tables], ".3f") for name in (levels[0], levels[-1])]
    up = written([float(t["comm/up_bytes_total"].dropna().iloc[-1]) / 1e6 for t in tables], ".2f")
    return f"| {rule} | {cells[0]} | {cells[1]} | {up} |"


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=list(SCORES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--rounds", type=int, help="default: that of the experiment")
    parser.add_argument("--out", required=True, help="folder of the runs")
    given = parser.parse_args()
    Path(given.out).mkdir(parents=True, exist_ok=True)
    os.chdir(given.out)
    base(given.kind)
    score = SCORES[given.kind]
    print(f"| rule | test {score}, largest rank | smallest rank | MB up |\n|---|---|---|---|", flush=True)
    for rule in given.rules:
        print(line(rule, [rows(given.kind, rule, seed, given.rounds) for seed in given.seeds], score), flush=True)


if __name__ == "__main__":
    main()
