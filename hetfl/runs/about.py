"""What a run folder says of its run beside the settings: version, date, command, machine, numbers of samples."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hetfl.cores import usable_cores
from hetfl.errors import ConfigurationError
from hetfl.reading import parse_json, read_bytes
from hetfl.started import started_by

FILE = "about.json"
"""Name of the file in a run folder; runs of earlier versions have none."""
LARGEST, LONGEST = 20_000, 4_000
"""Maximum size of the file in bytes, and of a text in characters."""


@dataclass(frozen=True)
class About:
    """What is known of a run beside its settings; empty texts and None are unknown.

    Attributes:
        version: versions of hetfl, Python and PyTorch.
        started: local date and time of the first start.
        command: the command line of the first start.
        machine: processor, cores and accelerator.
        classes: number of classes K; None without classes.
        train_samples: number of training samples of all clients.
        val_samples: number of samples of the validation.
        test_samples: number of samples of the test.
    """

    version: str = ""
    started: str = ""
    command: str = ""
    machine: str = ""
    classes: int | None = None
    train_samples: int | None = None
    val_samples: int | None = None
    test_samples: int | None = None

    def samples(self, stage: str) -> int | None:
        """Return the number of samples of a stage, ``val`` or ``test``; None: unknown."""
        return self.test_samples if stage == "test" else self.val_samples

    def to_json(self) -> bytes:
        """Return the contents of the file."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"


UNKNOWN = About()
"""What is known of a run without the file."""


def about_now(device: str, *, classes: int | None, train_samples: int, val_samples: int, test_samples: int) -> About:
    """Return what is known of a run that starts now; see :class:`About`.

    Args:
        device: name of the accelerator, or ``cpu``.
        classes: number of classes; None without classes.
        train_samples: number of training samples of all clients.
        val_samples: number of samples of the validation.
        test_samples: number of samples of the test.
    """
    return About(
        version=f"hetfl {_version('hetfl')}, Python {platform.python_version()}, PyTorch {_version('torch')}",
        started=datetime.now().strftime("%Y-%m-%d %H:%M"),
        command=started_by()[:LONGEST],
        machine=f"{_processor()}, {_cores()}" + ("" if device == "cpu" else f", {device}"),
        classes=classes,
        train_samples=train_samples,
        val_samples=val_samples,
        test_samples=test_samples,
    )


def about_in(folder: Path) -> About:
    """Return what a run folder says of its run; unknown without the file.

    Raises:
        ConfigurationError: the file is invalid.
    """
    path = folder / FILE
    if not path.is_file():
        return UNKNOWN
    try:
        about = About(**parse_json(read_bytes(path, LARGEST), LARGEST))
        for field in fields(About):
            value = getattr(about, field.name)
            if isinstance(field.default, str):
                if not isinstance(value, str) or not value.isprintable() or len(value) > LONGEST:
                    raise TypeError(f"{field.name} is no line of text")
            elif value is not None and (type(value) is not int or value < 0):
                raise TypeError(f"{field.name} is no number of samples or classes")
    except (TypeError, ValueError, ConfigurationError) as error:
        raise ConfigurationError(f"Expected what is known of a run in {path} but got: {error}") from None
    return about


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _cores() -> str:
    count = usable_cores()
    return f"{count} core{'s' * (count > 1)}"


def _processor() -> str:
    """Return the name of the processor, or of its architecture if the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()
