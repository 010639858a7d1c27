"""Quality of clusterings: adjusted Rand index and accuracy on two rotation groups of Digits.

    python benchmarks/clusters.py --seeds 5

Runs ``configs/experiment/clusters_digits.yaml`` with one global model, IFCA and ClusteredFL, and ClusteredFL also on
clients without groups, which should not be split. Prints one line per run and a summary.
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


def measure(name: str, seed: int, common: list[str]) -> tuple[float, int, float]:
    """Run one configuration; return the adjusted Rand index, the number of clusters and the test accuracy.

    Args:
        name: name of the configuration.
        seed: seed of the run.
        common: settings of all runs.
    """
    with tempfile.TemporaryDirectory() as root:
        config = str(CONFIGS / "experiment/clusters_digits.yaml")
        settings = [f"--seed_everything={seed}", "--plots=false", "--trainer.enable_progress_bar=false"]
        place = f"--trainer.logger.init_args.root={root}"
        arguments = ["fit", "-c", config, *RUNS[name], *settings, place, *common]
        subprocess.run([sys.executable, "-c", COMMAND, *arguments], check=True, capture_output=True)
        (folder,) = (path.parent for path in Path(root).rglob("clients.csv"))
        clients, rounds = table(folder / "clients.csv"), table(folder / "metrics.csv")
    chosen = [int(row.get("cluster", 0)) for row in clients]
    groups = RotationGroups([0, 90]).groups(len(chosen)) if ALIKE not in RUNS[name] else [0] * len(chosen)
    accuracy = next(float(row["test/accuracy"]) for row in reversed(rounds) if row["test/accuracy"])
    return float(adjusted_rand_score(groups, chosen)), len(set(chosen)), accuracy


def main() -> None:
    """Measure all configurations with some seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5)
    options, common = parser.parse_known_args()
    results: defaultdict[str, list[tuple[float, int, float]]] = defaultdict(list)
    for seed in range(options.seeds):
        for name in RUNS:
            results[name].append(measure(name, seed, common))
            ari, clusters, accuracy = results[name][-1]
            print(f"{name:<24} seed {seed}  ARI {ari:5.2f}  clusters {clusters}  accuracy {accuracy:.4f}", flush=True)
    for name, measured in results.items():
        aris, counts, accuracies = zip(*measured, strict=True)
        right = sum(ari >= 0.95 for ari in aris)
        numbers = "/".join(map(str, counts))
        share = f"{right} of {len(measured)}"
        print(f"{name:<24} ARI >= 0.95: {share}  clusters {numbers}  accuracy {mean(accuracies):.4f}")


if __name__ == "__main__":
    main()
