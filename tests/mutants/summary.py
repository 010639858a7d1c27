"""The report on all mutants."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from tests.mutants.population import Mutant
from tests.mutants.tables import Equivalent
from tests.mutants.trials import Trial

HOW = {"failed": "noticed", "endless": "noticed, endless", "crashed": "noticed, crashed", "broken": "noticed, broken"}
SHOWN = 8
"""Number of tests that are listed with a survivor."""


@dataclass
class Tally:
    """Counts trials and prints each result.

    Attributes:
        trials: the finished trials.
        stale: errors in entries of ``plausible.yaml``.
        equivalent: mutants that do not change behaviour, with the reasons.
        unmatched: entries of ``equivalent.yaml`` that match no change of the source.
    """

    trials: list[Trial] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    equivalent: list[tuple[Mutant, str]] = field(default_factory=list)
    unmatched: list[Equivalent] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, trial: Trial, total: int) -> None:
        """Add a trial and print one line about it; for a survivor also its change and the tests."""
        with self._lock:
            self.trials.append(trial)
            mutant, how = trial.mutant, HOW.get(trial.outcome, "SURVIVED")
            by = f"by {trial.test} " if trial.test else ""
            print(
                f"[{len(self.trials)}/{total}] {how}: {mutant.place} {mutant.operator} {by}"
                f"({trial.ran} of {len(trial.tests)} tests, {trial.seconds:.1f} s)",
                flush=True,
            )
            if not trial.noticed:
                print(described(trial), flush=True)

    def report(self, at_least: float) -> int:
        """Print the results of all trials, and return the exit status."""
        for mutant, reason in self.equivalent:
            print(f"changes nothing: {mutant.place} {mutant.operator}: {reason}\n{indented(mutant.diff())}")
        for entry in self.unmatched:
            print(f"equivalent.yaml: no change of the source is {entry.old!r} to {entry.new!r} in {entry.function}")
        for problem in self.stale:
            print(f"plausible.yaml is stale: {problem}")
        planted = [trial for trial in self.trials if trial.mutant.is_planted]
        draws = [trial for trial in self.trials if not trial.mutant.is_planted]
        for name, trials in (("plausible bugs", planted), ("drawn changes", draws)):
            if trials:
                print(f"{name}: {counted(trials)}")
                for trial in trials:
                    if not trial.noticed:
                        print(f"    {trial.mutant.place} {trial.mutant.operator}")
        share = 100 * sum(trial.noticed for trial in draws) / len(draws) if draws else 100.0
        return int(bool(self.stale) or share < at_least or not all(trial.noticed for trial in planted))


def counted(trials: list[Trial]) -> str:
    """Return the number of noticed mutants among some trials as text."""
    noticed = sum(trial.noticed for trial in trials)
    return f"{noticed} of {len(trials)} noticed ({100 * noticed / len(trials):.1f} %)"


def described(trial: Trial) -> str:
    """Return a survivor's change and the tests that did not notice it."""
    names = [test.name for test in trial.tests]
    tests = [f"      {name}" for name in names[:SHOWN]]
    if not names:
        tests = ["      no test calls this"]
    elif len(names) > SHOWN:
        tests.append(f"      and {len(names) - SHOWN} more, {trial.ran} of {len(names)} run")
    return "\n".join([indented(trial.mutant.diff()), *tests])


def indented(text: str) -> str:
    """Return a text with every line indented."""
    return "\n".join(f"    {line}" for line in text.splitlines())
