"""Runs of the demo on the command line that take seconds. What stands later on a command line wins."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
DEMO = ["-c", str(CONFIGS / "demo.yaml")]

FEW = ["--model.local.epochs=1", "--model.selection.clients_per_round=3", "--data.num_clients=10"]
"""Three of ten clients a round."""

SHORT = ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1", *FEW]
"""Two such rounds, both validated."""

UNTESTED = ["--model.statistics_clients=2", "--final_test=false", "--plots=false"]
"""Nothing at the end."""
