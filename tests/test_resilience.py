"""Runs that are killed at random instants or inside the write of a checkpoint resume to the same bits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from hetfl.cli import main
from hetfl.runs.checkpoint import SafeCheckpointIO

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("HETFL_KILLS", "0"))
"""Number of repetitions; each has six kills at random instants, and one at each place in a checkpoint's write."""
AT_RANDOM: list[Any] = [(seed, 6) for seed in range(KILLS)] or [(0, 1), (1, 2), (12, 2)]
"""Pairs of a seed and the number of kills of its run; later kills hit a resumed run."""

COMMAND = (
    "fit -c {root}/configs/demo.yaml --final_test=false --plots=false --model.local.epochs=1 "
    "--model.local.batch_size=30 "
    "--data.num_clients=12 --trainer.max_epochs={rounds} --trainer.logger.root={folder} --model.statistics_clients=2 "
    "--trainer.check_val_every_n_epoch=2"
)
ROUNDS = 12
HIDDEN = "--model.net.hidden=[8,8]"
FILES = "--model.uplink.residuals=hetfl.store.DiskStore"
CONFIGURATIONS = {
    "residuals in memory": "",
    "residuals in files": FILES,
    "workers": "--model.executor=hetfl.local.Workers --model.executor.num_workers=2",
    "clusters": "-c {configs}/clustering/ifca.yaml",
    "feddyn": "--model.local.penalty=hetfl.local.FedDyn --model.local.penalty.memories=hetfl.store.DiskStore",
    "snapshots of windows": "-c {configs}/parts/rolling.yaml --snapshots.every=2",
    "divfl": "-c {configs}/selection/divfl.yaml --model.selection.clients_per_round=5",
    "low rank": "-c {configs}/compressor/low_rank.yaml",
    "depthfl": "-c {configs}/method/depthfl.yaml --model.net.hidden=[4,4,4,4]",
    "scored channels": "-c {configs}/parts/scored_channels.yaml --model.parts.refresh_every=3 --snapshots.every=2 "
    "--model.parts.criterion=hetfl.pruning.criteria.Movement",
    "masks and personal tensors": '-c {configs}/parts/random_mask.yaml --model.personal=["*bias"] ' + FILES,
    "ranks": "-c {configs}/experiment/lora_demo.yaml --model.net.net.hidden=[8,8] "
    "--model.parts=hetfl.parts.AlternatingFactors",
    "a bandit with a deadline": "-c {configs}/fleet/mixed.yaml -c {configs}/assignment/discounted_ucb.yaml "
    "--model.deadline=0.05 --model.selection.clients_per_round=6",
    "masks that exchange entries": "-c {configs}/method/feddst.yaml --model.parts.every=2 "
    '--model.levels={{"a":{{"width":1.0}},"b":{{"density":0.2}}}}',
    "masks of clients that rewind": "-c {configs}/method/lottery_fl.yaml --model.parts.accuracy=0.1",
    "buffered rounds": "-c {configs}/fleet/mixed.yaml -c {configs}/schedule/buffered.yaml --model.schedule.size=2",
    "asynchronous rounds": "-c {configs}/fleet/mixed.yaml -c {configs}/schedule/asynchronous.yaml " + FILES,
}
"""Arguments of the killed runs, by name."""
NAMES = tuple(CONFIGURATIONS)
PLACES = ("SealedFile.write", "files._sync_folder", "SealedFile.seal", "SafeCheckpointIO._keep_previous")
"""Functions of hetfl.runs.checkpoint and hetfl.files: in a file, after the renames, at its end, before the renames."""
INSIDE = [(seed, place) for seed in range(KILLS) for place in PLACES] or [(0, place) for place in PLACES[:2]]

EVERY_ROUND = """
from hetfl.session.callbacks import LastCheckpoint
LastCheckpoint.__init__.__defaults__ = (1.0,)
"""
"""Lets every round write a checkpoint."""

KILLED = """
import os, signal, sys
from hetfl import files
from hetfl.runs import checkpoint
from hetfl.cli import main
place, save, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
owner = files if place.startswith("files.") else getattr(checkpoint, place.split(".")[0])
name = place.split(".")[-1]
function, begin = getattr(owner, name), checkpoint.SealedFile.__init__
calls = 0
def saving(*args):
    global save
    save -= 1
    begin(*args)
def call(*args):
    global calls
    calls += save <= 0
    if calls == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args)
checkpoint.SealedFile.__init__ = saving
setattr(owner, name, call)
main(sys.argv[4:])
"""
"""Kills itself at the ``number``-th call of a function, counted from the ``save``-th checkpoint on."""


def start(args: str, *kill: str, every_round: bool = True) -> subprocess.Popen[str]:
    """Start a run; with arguments of ``KILLED``, a run that kills itself."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    code = (EVERY_ROUND if every_round else "") + (KILLED if kill else "from hetfl.cli import main; main()")
    command = [sys.executable, "-c", code, *kill, *args.split()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def command(folder: Path, name: str, rounds: int = ROUNDS) -> str:
    arguments = CONFIGURATIONS[name].format(configs=ROOT / "configs")
    net = "" if "net.hidden" in arguments else HIDDEN
    return f"{COMMAND.format(root=ROOT, folder=folder, rounds=rounds)} {arguments} {net}"


def state(folder: Path) -> dict[str, Any]:
    return SafeCheckpointIO().load_checkpoint(folder / "checkpoints/last.ckpt")


def files_of_residuals(folder: Path) -> dict[str, bytes]:
    """Return the residual files that the checkpoint refers to; none for residuals in memory."""
    rounds = state(folder)["hetfl"]["pieces"]["uplink"]["residuals"].get("rounds", torch.empty(0, 2)).tolist()
    names = [f"client-{client}-round-{round}.safetensors" for client, round in rounds]
    return {name: (folder / "residuals" / name).read_bytes() for name in names}


def snapshots(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("snapshots/*")}


def assert_same(one: Any, two: Any) -> None:
    """Compare nested states bit for bit."""
    if isinstance(one, torch.Tensor):
        assert one.shape == two.shape
        assert torch.allclose(one, two, rtol=0, atol=0, equal_nan=True)  # DivFL keeps NaN where a client sent no entry
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for left, right in zip(one, two, strict=True):
            assert_same(left, right)
    else:
        assert one == two


def assert_same_runs(one: Path, two: Path) -> None:
    assert (one / "metrics.csv").read_bytes() == (two / "metrics.csv").read_bytes()
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "hetfl"):
        assert_same(state(one)[part], state(two)[part])
    assert files_of_residuals(one) == files_of_residuals(two)
    assert snapshots(one) == snapshots(two)
    arrivals = [folder.joinpath("timeline.csv") for folder in (one, two)]
    assert len({file.read_bytes() if file.exists() else b"" for file in arrivals}) == 1


def run_folder(root: Path) -> Path:
    (folder,) = (root / "demo").iterdir()
    return folder


def checkpoint_time(root: Path) -> int:
    """Return the time of the run's checkpoint in nanoseconds; 0 before the first checkpoint."""
    return max((path.stat().st_mtime_ns for path in root.glob("demo/*/checkpoints/last.ckpt")), default=0)


def rounds_to_repeat(folder: Path) -> int:
    """Return the number of rounds of a killed run that its checkpoint does not have."""
    done: int = state(folder)["hetfl"]["version"]
    return (folder / "metrics.csv").read_text().count("\n") - 1 - done


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of an uninterrupted run of a configuration, made in this process."""

    @cache
    def run(name: str) -> Path:
        root = tmp_path_factory.mktemp("whole")
        main(command(root, name).split())
        return run_folder(root)

    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No client", "ignore:IFCA")
@pytest.mark.parametrize(("seed", "kills"), AT_RANDOM)
def test_a_run_killed_at_random_instants_and_resumed_ends_with_the_same_bits(
    tmp_path: Path, whole: Callable[[str], Path], seed: int, kills: int
) -> None:
    choose, name = random.Random(seed), NAMES[seed % len(NAMES)]
    process = start(command(tmp_path, name))
    for number in range(kills):
        if number:
            process = start(f"resume {run_folder(tmp_path)}")
        # The instant is after the next checkpoint of this process, anywhere in the following rounds.
        seen = checkpoint_time(tmp_path)
        while process.poll() is None and checkpoint_time(tmp_path) == seen:
            time.sleep(0.01)
        time.sleep(choose.uniform(0.0, 0.3))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert rounds_to_repeat(run_folder(tmp_path)) in (0, 1)
    main(["resume", str(run_folder(tmp_path))])
    assert_same_runs(run_folder(tmp_path), whole(name))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No client", "ignore:IFCA")
@pytest.mark.parametrize(("seed", "place"), INSIDE)
def test_a_run_killed_inside_the_write_of_a_checkpoint_ends_with_the_same_bits(
    tmp_path: Path, whole: Callable[[str], Path], seed: int, place: str
) -> None:
    choose = random.Random(f"{seed} {place}")
    name = NAMES[(seed + PLACES.index(place)) % len(NAMES)]
    number = choose.randrange(1, 300) if place == "SealedFile.write" else 1
    process = start(command(tmp_path, name), place, str(choose.randrange(2, ROUNDS)), str(number))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert bool(list(run_folder(tmp_path).glob("checkpoints/*.tmp"))) == (place != "files._sync_folder")
    assert rounds_to_repeat(run_folder(tmp_path)) in (0, 1)
    main(["resume", str(run_folder(tmp_path))])
    assert_same_runs(run_folder(tmp_path), whole(name))
    assert not list(run_folder(tmp_path).glob("checkpoints/*.tmp"))


@pytest.mark.slow
def test_ctrl_c_stops_the_run_at_a_round_end_with_a_checkpoint(tmp_path: Path) -> None:
    process = start(command(tmp_path, NAMES[0], rounds=2000), every_round=False)
    while process.poll() is None and not list(tmp_path.glob("demo/*/checkpoints/last.ckpt")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping after this round" in error
    assert "Traceback" not in error
    table = pd.read_csv(run_folder(tmp_path) / "metrics.csv")
    assert state(run_folder(tmp_path))["hetfl"]["version"] == len(table) < 2000
