"""Check that two commits give the same results: five short runs of each, compared cell by cell and weight by weight.

``python benchmarks/same_bits.py BASE`` compares the working tree with a commit. Renamed columns are mapped, new columns
are allowed, and every other cell must have the same text. The weights of the last checkpoint are compared as a multiset
of digests, so their names may change. The exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 4
RUNS: dict[str, tuple[str, ...]] = {
    "heterofl_top_k": (
        *("-c", "configs/base.yaml", "-c", "configs/method/heterofl.yaml", "-c", "configs/data/digits.yaml"),
        *("-c", "configs/compressor/top_k.yaml"),
    ),
    "depthfl_feddyn": (
        *("-c", "configs/base.yaml", "-c", "configs/method/depthfl.yaml", "-c", "configs/data/digits.yaml"),
    ),
    "ifca": (
        *("-c", "configs/experiment/clusters_digits.yaml", "-c", "configs/clustering/ifca.yaml"),
        "--trainer.check_val_every_n_epoch=1",
    ),
    "workers": ("-c", "configs/demo.yaml", "-c", "configs/executor/workers.yaml"),
    "ranks": ("-c", "configs/demo.yaml", "--trainer.strategy=ddp", "--trainer.devices=2"),
}
"""Arguments of ``hetfl fit``, by name of the run."""


def renamed(column: str) -> str:
    """Return the current name of a column of the first edition."""
    stage, _, name = column.partition("/")
    if stage in ("val", "test") and name.startswith("accuracy/head_"):
        return f"{stage}/accuracy_by_head/{name.removeprefix('accuracy/head_')}"
    if stage in ("val", "test") and name.startswith("accuracy/"):
        return f"{stage}/accuracy_by_level/{name.removeprefix('accuracy/')}"
    return column


def train(tree: Path, out: Path) -> None:
    """Run all runs with the code and the configurations of one checkout."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    for name, arguments in RUNS.items():
        if folder(out, name) is not None:
            continue
        settings = (
            "--trainer.logger.class_path=hetfl.run_folder.RunFolder",
            f"--trainer.logger.init_args.root={out}",
            f"--trainer.logger.init_args.name={name}",
            f"--trainer.max_epochs={ROUNDS}",
            "--trainer.enable_progress_bar=false",
            "--plots=false",
        )
        done = subprocess.run(
            (Path(sys.executable).with_name("hetfl"), "fit", *arguments, *settings),
            cwd=tree,
            env=environment,
            text=True,
            capture_output=True,
        )
        if done.returncode:
            sys.exit(f"{name} with {tree} ended with status {done.returncode}:\n{done.stderr[-2000:]}")


def folder(out: Path, name: str) -> Path | None:
    """Return the folder of a finished run; None if there is none."""
    return next((path.parent for path in (out / name).glob("*/clients.csv")), None)


def table(path: Path) -> dict[str, list[str]]:
    """Return the cells of a ``metrics.csv`` by the current name of their column."""
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    return {renamed(column): [row[number] for row in rows] for number, column in enumerate(header)}


def weights(run: Path) -> Counter[str]:
    """Return the number of occurrences of each tensor, by digest, in the weights of the last checkpoint of a run."""
    state = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]  # noqa: TID251
    tensors = (tensor.contiguous() for tensor in state.values())
    contents = (tensor.numpy().tobytes() + repr(tensor.shape).encode() for tensor in tensors)
    return Counter(hashlib.blake2b(content).hexdigest() for content in contents)


def differences(before: Path, after: Path) -> list[str]:
    """Return the differences between two folders of a run, in words."""
    old, new = table(before / "metrics.csv"), table(after / "metrics.csv")
    missing = [f"column {column} is gone" for column in old if column not in new]
    other = [
        f"{column} in row {row}: {one} became {two}"
        for column in old
        if column in new
        for row, (one, two) in enumerate(zip(old[column], new[column], strict=True))
        if one != two
    ]
    changed = ["weights of the last checkpoint"] if weights(before) != weights(after) else []
    return [*missing, *other, *changed]


def main() -> None:
    """Compare the working tree with a commit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("--keep", type=Path, help="folder in which the runs of the base are kept and reused")
    options = parser.parse_args()
    commit = subprocess.check_output(("git", "rev-parse", options.base), cwd=ROOT, text=True).strip()
    with tempfile.TemporaryDirectory() as scratch:
        base = (options.keep.resolve() if options.keep else Path(scratch)) / commit
        if not all(folder(base, name) for name in RUNS):
            tree = Path(scratch) / "tree"
            subprocess.run(("git", "worktree", "add", "--quiet", "--detach", tree, commit), cwd=ROOT, check=True)
            try:
                train(tree, base)
            finally:
                subprocess.run(("git", "worktree", "remove", "--force", tree), cwd=ROOT, check=True)
        train(ROOT, Path(scratch) / "now")
        results = {}
        for name in RUNS:
            before, after = folder(base, name), folder(Path(scratch) / "now", name)
            assert before is not None
            assert after is not None
            results[name] = differences(before, after)
    for name, lines in results.items():
        print(f"{name:<16}{'; '.join(lines[:5]) or 'the same'}")
    sys.exit(any(results.values()))


if __name__ == "__main__":
    main()
