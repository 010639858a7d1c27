"""Files of configs/selection, clustering, fleet, assignment and method can be stacked on the command line."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import yaml

from hetfl import clustering, fleet, schedule, selection
from hetfl.cli import main
from hetfl.clustering import Clustering, OneCluster
from hetfl.fleet import Fleet, SameDevice
from hetfl.schedule import Schedule, Synchronous
from hetfl.selection import Selection, Uniform
from tests.demo_cases import CONFIGS, SHORT

KINDS = ("selection", "clustering", "fleet", "assignment", "method", "schedule")
FILES = {kind: sorted((CONFIGS / kind).glob("*.yaml")) for kind in KINDS}
STACKS = [
    tuple(files[number % len(files)] for files in (FILES["selection"], FILES["clustering"], FILES["fleet"]))
    for number in range(len(FILES["selection"]))
]
"""Every selection, with the files of the other kinds in turn."""
MARKED = [(stack, [pytest.mark.slow] * (number % 2)) for number, stack in enumerate(STACKS)]
UNLIKE = ["complement_sparsification", "depthfl", "feddst", "fedmp", "fednova", "fedper", "fedprox", "fedrolex"]
"""Methods of which each has another mechanism that clusters must work with."""
PAIRS = [
    pytest.param(
        method,
        groups,
        id=f"{method.stem}-{groups.stem}",
        marks=[pytest.mark.slow] * (method.stem not in UNLIKE or (UNLIKE.index(method.stem) + column) % 2),
    )
    for method in FILES["method"]
    for column, groups in enumerate(FILES["clustering"])
    if (method.stem, groups.stem) != ("feddu", "ifca")  # refused: the server's samples train one model
]
"""Every method with every clustering; by default unlike methods, with one clustering each."""


def data_of(method: Path) -> Path:
    """Return the data file that the first line of a method's file names, or the digits by default."""
    named = re.search(r"\bdata/\w+", method.read_text(encoding="utf-8").partition("\n")[0])
    return CONFIGS / f"{named[0] if named else 'data/digits'}.yaml"


def run(tmp_path: Path, files: list[Path], *settings: str) -> pd.DataFrame:
    """Train two rounds of stacked files; return the table metrics.csv."""
    devices = tmp_path / "devices.csv"
    lines = [f"{client},1e9,1e6,{1e5 * (client + 1)},0.9" for client in range(10)]
    devices.write_text("\n".join(["client,throughput,downlink,uplink,availability", *lines]))
    stacked = [part for file in files for part in ("-c", str(file))]
    arguments = [f"--model.fleet.path={devices}"] if any(file.stem == "csv" for file in files) else []
    arguments += ["--model.executor=hetfl.local.Sequential"]
    arguments += ["--model.selection.candidates=5"] if any(file.stem == "power_of_choice" for file in files) else []
    main(["fit", *stacked, *SHORT, "--plots=false", *arguments, *settings, f"--trainer.logger.root={tmp_path}"])
    (metrics,) = tmp_path.rglob("metrics.csv")
    table = pd.read_csv(metrics)
    assert table["step"].tolist() == [0, 1]
    assert 0 < table["test/accuracy"].iloc[-1] <= 1
    return table


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "stack",
    [pytest.param(stack, id="-".join(file.stem for file in stack), marks=marks) for stack, marks in MARKED],
)
def test_selection_files_stack_with_clustering_and_fleet_files(tmp_path: Path, stack: tuple[Path, ...]) -> None:
    table = run(tmp_path, [CONFIGS / "demo.yaml", *stack], "--model.net.hidden=[8,8]")
    assert table["cluster/count"].min() >= 1
    assert table["sim/seconds_total"].iloc[-1] > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "groups"), PAIRS)
def test_method_files_stack_with_clustering_files(tmp_path: Path, method: Path, groups: Path) -> None:
    stages = method.stem in ("depthfl", "inclusivefl", "scalefl")
    hidden = "--model.net.hidden=[4,4,4,4]" if stages else "--model.net.hidden=[8,8]"
    files = [CONFIGS / "base.yaml", method, data_of(method), groups]
    table = run(tmp_path, files, hidden, "--model.local.epochs=2")  # stragglers do one epoch
    assert table["cluster/count"].iloc[-1] == (2 if groups.stem == "ifca" else 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("assignment", FILES["assignment"], ids=lambda file: file.stem)
def test_assignment_files_stack_on_a_fleet_file(tmp_path: Path, assignment: Path) -> None:
    files = [CONFIGS / "demo.yaml", CONFIGS / "fleet/mixed.yaml", assignment]
    run(tmp_path, files, "--model.net.hidden=[8,8]")
    (config,) = tmp_path.rglob("config.yaml")
    model = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["init_args"]
    given = yaml.safe_load(assignment.read_text(encoding="utf-8"))["model"]["init_args"]
    assert model["assignment"]["class_path"] == given["assignment"]["class_path"]
    assert given["assignment"].get("init_args", {}).items() <= model["assignment"]["init_args"].items()
    assert list(model["levels"]) == list(given.get("levels", "abcde"))
    learns = assignment.stem in ("discounted_ucb", "eucb")
    assert bool(list(tmp_path.rglob("assignment.csv"))) == learns


@pytest.mark.parametrize("assignment", ["growing", "growing_on_plateau"])
@pytest.mark.parametrize("method", ["depthfl", "fedgmr"])
def test_growing_keeps_the_levels_of_a_method(capsys: pytest.CaptureFixture[str], method: str, assignment: str) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "-c", "base", "-c", f"method/{method}", "-c", f"assignment/{assignment}", "--print_config"])
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    own = yaml.safe_load((CONFIGS / f"method/{method}.yaml").read_text(encoding="utf-8"))["model"]["init_args"]
    assert model["levels"].keys() == own["levels"].keys()
    assert all(given.items() <= model["levels"][name].items() for name, given in own["levels"].items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", FILES["schedule"], ids=lambda file: file.stem)
@pytest.mark.parametrize("method", ["fedrolex", "fedper"])
def test_schedule_files_stack_on_methods_and_a_fleet_file(tmp_path: Path, method: str, file: Path) -> None:
    of_method = CONFIGS / f"method/{method}.yaml"
    files = [CONFIGS / "base.yaml", of_method, data_of(of_method), CONFIGS / "fleet/mixed.yaml", file]
    table = run(tmp_path, files, "--model.net.hidden=[8,8]")
    (timeline,) = tmp_path.rglob("timeline.csv")
    assert len(pd.read_csv(timeline)) >= table["schedule/updates"].sum() > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No client can run level")  # nobody trains the whole model of some methods
@pytest.mark.parametrize("method", FILES["method"], ids=lambda file: file.stem)
def test_method_files_train_on_base_and_their_data_file(tmp_path: Path, method: Path) -> None:
    stacked = [part for file in (CONFIGS / "base.yaml", method, data_of(method)) for part in ("-c", str(file))]
    main(["fit", *stacked, "--trainer.max_epochs=2", "--plots=false", f"--trainer.logger.root={tmp_path}"])
    (metrics,) = tmp_path.rglob("metrics.csv")
    assert pd.read_csv(metrics)["train/loss"].between(0, 20).all()


@pytest.mark.parametrize("method", FILES["method"], ids=lambda file: file.stem)
def test_method_files_name_their_class_and_levels(method: Path) -> None:
    model = yaml.safe_load(method.read_text(encoding="utf-8"))["model"]
    assert model["class_path"].startswith("hetfl.")
    assert model["init_args"]["levels"]


@pytest.mark.parametrize(
    ("module", "kind", "plain"),
    [
        (selection, Selection, Uniform),
        (clustering, Clustering, OneCluster),
        (fleet, Fleet, SameDevice),
        (schedule, Schedule, Synchronous),
    ],
    ids=["selection", "clustering", "fleet", "schedule"],
)
def test_every_policy_has_a_file(module: ModuleType, kind: type, plain: type) -> None:
    """The policies that are used by default need no file."""
    folder = kind.__name__.lower()
    text = "".join(file.read_text() for file in FILES[folder])
    classes = [each for each in vars(module).values() if inspect.isclass(each) and issubclass(each, kind)]
    for each in classes:
        if not inspect.isabstract(each) and each is not plain:
            assert f"hetfl.{folder}.{each.__name__}" in text
