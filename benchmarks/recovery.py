"""The cost of resuming: one more round of a stopped run, compared with a new run of one round."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from timing import Row, interleaved, parser, report, rows

CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"
ONE_ROUND = ["--final_test=false", "--plots=false"]


def hetfl(*arguments: str) -> None:
    """Run the command line in a separate process.

    Raises:
        RuntimeError: the process fails.
    """
    command = [sys.executable, "-c", "from hetfl.cli import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Expected {' '.join(arguments)} to work but got: {done.stderr.strip()}")


def recovery(rounds: int, settings: list[str], *, blocks: int) -> list[Row]:
    """Return the times of a new run of one round, and of one more round of a run that was stopped.

    Args:
        rounds: rounds before the stop.
        settings: arguments of ``hetfl fit`` in addition to those of the demo.
        blocks: timed blocks.
    """
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        demo = ["fit", "-c", str(CONFIG), *ONE_ROUND, *settings]
        hetfl(*demo, f"--trainer.max_epochs={rounds}", f"--trainer.logger.root={root / 'stopped'}")
        (stopped,) = (root / "stopped" / "demo").iterdir()

        def resume() -> None:
            shutil.rmtree(root / "again", ignore_errors=True)
            shutil.copytree(stopped, root / "again")
            hetfl("resume", str(root / "again"), *ONE_ROUND, f"--trainer.max_epochs={rounds + 1}")

        def begin() -> None:
            hetfl(*demo, "--trainer.max_epochs=1", f"--trainer.logger.root={root / 'new'}")

        sides: dict[str, Callable[[], object]] = {"begin, 1 round": begin, "resume, 1 round": resume}
        return rows(f"a process with one round, after {rounds}", interleaved(sides, blocks=blocks, warmup=1))


def main() -> None:
    """Run from the command line."""
    options = parser(__doc__, blocks=5)
    options.add_argument("--rounds", type=int, default=10, help="rounds before the stop (default: %(default)s)")
    given, settings = options.parse_known_args()
    report(recovery(given.rounds, settings, blocks=given.blocks), given.json)


if __name__ == "__main__":
    main()
