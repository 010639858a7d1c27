"""Who is found to belong together: adjusted Rand index and accuracy of clusterings on two rotation groups of Digits.

    python benchmarks/clusters.py --seeds 5

Runs ``configs/experiment/clusters_digits.yaml`` with one global model, IFCA and ClusteredFL, and ClusteredFL once more
on a fleet of a single kind, which should not be split; prints one line per run and a summary.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean

from sklearn.metrics import adjusted_rand_score

from hetfl.data import RotationGroups

CONFIGS = Path(__file__).parent.parent / "configs"
ALIKE = "--data.init_args.client_transform.init_args.angles=[0]"
RUNS: dict[str, list[str]] = {
    "one model": [],
    "IFCA": ["-c", str(CONFIGS / "clustering/ifca.yaml")],
    "ClusteredFL": ["-c", str(CONFIGS / "clustering/clustered_fl.yaml")],
    "ClusteredFL, all alike": ["-c", str(CONFIGS / "clustering/clustered_fl.yaml"), ALIKE],
}
COMMAND = "import sys; from hetfl.cli import main; sys.exit(main())"


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def measure(name: str, seed: int, own: list[str]) -> tuple[float, int, float]:
    """Run one configuration; return the adjusted Rand index, the number of clusters and the test accuracy.

    Args:
        name: of the configuration.
        seed: of the run.
        own: settings of all runs.
    """
    with tempfile.TemporaryDirectory() as root:
        config = str(CONFIGS / "experiment/clusters_digits.yaml")
        settings = [f"--seed_everything={seed}", "--plots=false", "--trainer.enable_progress_bar=false"]
        place = f"--trainer.logger.init_args.root={root}"
        arguments = ["fit", "-c", config, *RUNS[name], *settings, place, *own]
        subprocess.run([sys.executable, "-c", COMMAND, *arguments], check=True, capture_output=True)
        (folder,) = (path.parent for path in Path(root).rglob("clients.csv"))
        clients, rounds = table(folder / "clients.csv"), table(folder / "metrics.csv")
    found = [int(row.get("cluster", 0)) for row in clients]
    groups = RotationGroups([0, 90]).groups(len(found)) if ALIKE not in RUNS[name] else [0] * len(found)
    accuracy = next(float(row["test/accuracy"]) for row in reversed(rounds) if row["test/accuracy"])
    return float(adjusted_rand_score(groups, found)), len(set(found)), accuracy


def main() -> None:
    """Measure all configurations with some seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5)
    options, own = parser.parse_known_args()
    results: defaultdict[str, list[tuple[float, int, float]]] = defaultdict(list)
    for seed in range(options.seeds):
        for name in RUNS:
            results[name].append(measure(name, seed, own))
            ari, clusters, accuracy = results[name][-1]
            print(f"{name:<24} seed {seed}  ARI {ari:5.2f}  clusters {clusters}  accuracy {accuracy:.4f}", flush=True)
    for name, found in results.items():
        aris, counts, accuracies = zip(*found, strict=True)
        right = sum(ari >= 0.95 for ari in aris)
        numbers = "/".join(map(str, counts))
        print(f"{name:<24} ARI >= 0.95: {right} of {len(found)}  clusters {numbers}  accuracy {mean(accuracies):.4f}")


if __name__ == "__main__":
    main()
