"""A bench for trying mutants: a copy of the project, and the process that runs tests in it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mutants.copies import changed, copied
from tests.mutants.covering import Coverage, MeasuredTest
from tests.mutants.population import Mutant, files_in_scope

FIRST_SECONDS, FIRST_FILES = 3.0, 4
"""Limits of the first batch of tests: seconds and files. Each further batch may take three times as long."""
PRELOADED = (
    *("torch", "torch.func", "torchvision", "lightning", "lightning.pytorch.cli", "torchmetrics.classification"),
    *("numpy", "pandas", "scipy", "sklearn.cluster", "sklearn.datasets", "numba", "PIL.Image", "matplotlib.pyplot"),
    *("jsonargparse", "rich.console", "safetensors.torch", "yaml"),
)
"""Modules that the process imports once, for all mutants."""
PATIENCE = 30.0
"""Seconds that a test may take in addition to ten times its usual duration."""
MEASURING = 3600.0
"""Seconds that a test file may take while it is measured."""


@dataclass(frozen=True)
class Trial:
    """The result of a mutant.

    Attributes:
        mutant: the mutant.
        outcome: "failed", "endless", "crashed" or "broken" (no test could be run at all) if it was noticed; "survived".
        test: the test that noticed the mutant.
        ran: number of tests that were run, including ``test``.
        tests: the tests that call the changed function, in order of execution.
        seconds: duration.
    """

    mutant: Mutant
    outcome: str
    test: str
    ran: int
    tests: Sequence[MeasuredTest]
    seconds: float

    @property
    def noticed(self) -> bool:
        """Whether a test noticed the mutant."""
        return self.outcome != "survived"


class Bench:
    """A copy of the project and a process in it.

    Args:
        root: root of the project.
        folder: an empty folder for the copy; the caller deletes it.
        preloaded: modules that the process imports at its start.
        patience: seconds that a test may take in addition to ten times its usual duration.
    """

    def __init__(
        self, root: Path, folder: Path, preloaded: Sequence[str] = PRELOADED, patience: float = PATIENCE
    ) -> None:
        self._patience = patience
        self.copy, self._temporary, self._log = folder / "copy", folder / "temporary", folder / "log"
        copied(root, self.copy)
        self._system = folder / "system"
        self._system.mkdir()
        environment = os.environ | {
            "PYTHONPATH": str(self.copy),
            "PYTHONHASHSEED": "0",
            "MPLBACKEND": "agg",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self._system),
        }
        self._errors = (folder / "errors").open("wb")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.server", *preloaded],
            cwd=self.copy,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._input, self._answers, self._number = self._server.stdin, self._server.stdout, 0

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        self._server.wait()
        self._answers.close()
        self._errors.close()

    def terminate(self) -> None:
        """End the process; an unanswered request raises a RuntimeError."""
        self._server.terminate()

    def _ask(self, **request: Any) -> dict[str, Any]:
        """Have the process run pytest once, and delete the files that it leaves.

        Raises:
            RuntimeError: the process has ended.
        """
        request |= {"temporary": str(self._temporary), "log": str(self._log)}
        self._input.write(json.dumps(request) + "\n")
        self._input.flush()
        answer = self._answers.readline()
        for folder in (self._temporary, self._system):
            shutil.rmtree(folder, ignore_errors=True)
        self._system.mkdir(exist_ok=True)
        if not answer:
            errors = self._errors.name
            raise RuntimeError(f"Expected an answer of the process that runs tests but it has ended: see {errors}")
        reply: dict[str, Any] = json.loads(answer)
        return reply

    @property
    def output(self) -> str:
        """The last output of pytest."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def measure(self, files: Sequence[str], coverage: Coverage) -> None:
        """Measure which functions the tests of some files call."""
        out = self._log.with_name("measured")
        out.unlink(missing_ok=True)
        self._ask(files=list(files), paths=files_in_scope(self.copy), out=str(out), limit=MEASURING)
        coverage.keep(files, out)

    def run(self, tests: Sequence[MeasuredTest]) -> dict[str, Any]:
        """Run tests in order until one fails; return ``outcome``, ``test`` and ``ran``."""
        files = list(dict.fromkeys(test.file for test in tests))
        seconds = {test.name: test.seconds for test in tests}
        return self._ask(files=files, tests=list(seconds), seconds=seconds, patience=self._patience)

    def attempt(self, mutant: Mutant, tests: Sequence[MeasuredTest], budget: float) -> Trial:
        """Run the tests of the changed function until one notices the mutant or the budget in seconds is used up."""
        began, ran = time.monotonic(), 0
        self._number += 1
        with changed(self.copy / mutant.path, mutant.text, self._number):
            for part in batches(tests, budget):
                reply = self.run(part)
                ran += reply["ran"]
                if reply["outcome"] != "passed":
                    return Trial(mutant, reply["outcome"], reply["test"], ran, tests, time.monotonic() - began)
        return Trial(mutant, "survived", "", ran, tests, time.monotonic() - began)


def batches(tests: Sequence[MeasuredTest], budget: float) -> Iterator[list[MeasuredTest]]:
    """Yield batches of tests of growing size: the first tests notice most mutants, and collecting many files is slow.

    Args:
        tests: tests in order.
        budget: seconds for all tests; tests beyond it are left out.
    """
    most_seconds, most_files, spent = FIRST_SECONDS, FIRST_FILES, 0.0
    part: list[MeasuredTest] = []
    for test in tests:
        seconds = sum(each.seconds for each in part)
        if spent + seconds + test.seconds > budget:
            continue
        files = {each.file for each in part} | {test.file}
        if part and (seconds + test.seconds > most_seconds or len(files) > most_files):
            yield part
            spent, part = spent + seconds, []
            most_seconds, most_files = 3 * most_seconds, 3 * most_files
        part.append(test)
    if part:
        yield part
