"""Language models from the command line: methods on a generated text, and HeteroFL's experiment on small files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from hetfl.cli import main
from tests.demo_cases import UNTESTED, refused

BEST, WORST = 4.0, 32.0
"""Perplexities on the generated text: of the best model, and of one that ignores the preceding token."""

SLOW = pytest.mark.slow

SMALL = [
    *("--data.words=8000", "--data.rows=8", "--data.num_clients=4", "--model.net.channels=16"),
    *("--model.selection.clients_per_round=3", "--trainer.check_val_every_n_epoch=2", *UNTESTED),
]
EXITS = [
    *("--model=hetfl.DepthFL", "--model.net=hetfl.models.MultiExitTransformer", "--model.net.vocab_size=32"),
    *("--model.net.pooling=none", "--model.net.layers=4", "--model.net.heads=4", "--model.net.feed_forward=16"),
]
CHANGES = {
    "width": ["--model.levels={a: {width: 1.0}, b: {width: 0.5}}"],
    "depth": [*EXITS, "--model.levels={a: {depth: 4}, b: {depth: 1}}"],
    "both": [*EXITS, "--model.levels={a: {depth: 4}, b: {width: 0.5, depth: 2}}"],
    "fedavg": ["-c", "method/fedavg"],
}


def metrics(folder: Path) -> pd.DataFrame:
    (path,) = folder.rglob("metrics.csv")
    return pd.read_csv(path)


def generated(name: str, folder: Path, rounds: int) -> list[str]:
    """Return the arguments of a method on the generated text."""
    where = [f"--trainer.logger.root={folder}", f"--trainer.max_epochs={rounds}"]
    return ["fit", "-c", "experiment/text_demo", *CHANGES[name], *SMALL, *where]


@pytest.mark.parametrize("name", [name if name == "width" else pytest.param(name, marks=SLOW) for name in CHANGES])
def test_every_method_learns_the_generated_text(name: str, tmp_path: Path) -> None:
    """After eight rounds the largest level is nearer to the best perplexity than to that of single tokens."""
    main(generated(name, tmp_path, 8))
    rows = metrics(tmp_path)
    assert BEST < rows["val/perplexity"].dropna().iloc[-1] < 12.0
    levels = [column for column in rows if str(column).startswith("val/perplexity_by_level/")]
    assert len(levels) == (1 if name == "fedavg" else 2)
    assert all(BEST < rows[column].dropna().iloc[-1] < WORST for column in levels)
    heads = [column for column in rows if str(column).startswith("val/perplexity_by_head/")]
    assert len(heads) == (4 if name in ("depth", "both") else 0)


def test_a_language_model_by_width_and_depth_resumes_with_the_same_bits(tmp_path: Path) -> None:
    for name, rounds in (("whole", 3), ("begun", 1)):
        main(generated("both", tmp_path / name, rounds))
    (begun,) = (path.parent for path in (tmp_path / "begun").rglob("config.yaml"))
    main(["resume", str(begun), "--trainer.max_epochs=3", *UNTESTED])
    whole = metrics(tmp_path / "whole")
    pd.testing.assert_frame_equal(metrics(tmp_path / "begun"), whole, check_exact=True)
    assert whole["train/loss"].is_monotonic_decreasing


def small_files(folder: Path) -> None:
    """Write files of 20 different words in the format of WikiText-2."""
    words = torch.randint(20, (60, 12), generator=torch.Generator().manual_seed(0)).tolist()
    text = "".join(" " + " ".join(f"w{word}" for word in line) + " \n" for line in words)
    for name in ("wiki.train.tokens", "wiki.test.tokens"):
        (folder / name).write_text(text, encoding="utf-8")


def test_heterofls_experiment_runs_on_files_in_the_format_of_wikitext(tmp_path: Path) -> None:
    """22 words: <unk>, <eos> and the 20; each client masks 15 % of them."""
    small_files(tmp_path)
    data = [f"--data.root={tmp_path}", "--data.rows=8", "--data.test_rows=2", "--data.length=8", "--data.num_clients=4"]
    net = ["--model.net.vocab_size=23", "--model.net.num_classes=22", "--model.net.channels=16"]
    small = ["--model.net.layers=1", "--model.selection.clients_per_round=3", "--trainer.check_val_every_n_epoch=1"]
    run = [f"--trainer.logger.root={tmp_path}", "--trainer.accelerator=cpu", "--trainer.max_epochs=3", *UNTESTED]
    main(["fit", "-c", "experiment/heterofl_transformer", *data, *net, *small, *run])
    rows = metrics(tmp_path)
    assert rows["val/masked_perplexity"].iloc[-1] < rows["val/masked_perplexity"].iloc[0]
    assert rows["val/masked_perplexity_by_level/e"].notna().all()
    assert not [column for column in rows if str(column).startswith("val/perplexity")]


def test_missing_files_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, ["fit", "-c", "experiment/heterofl_transformer", f"--data.root={tmp_path}"])
    assert "word-level files of WikiText-2 in" in error
    assert "wiki.train.tokens is missing: set root to their folder" in error
