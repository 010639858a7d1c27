"""The parts of a new project that options of ``hetfl init`` choose: method, levels and compressor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from hetfl.arguments import suggestion
from hetfl.cli.config_files import packaged_file, packaged_names
from hetfl.errors import ConfigurationError
from hetfl.reading import parse_yaml

COMPRESSORS = "compressor/"
"""Folder of the packaged configurations of compressors."""
COLUMN = 27
"""Column of the comments in the sections of a project."""


@dataclass(frozen=True)
class Method:
    """A method for a new project.

    Attributes:
        model: its class.
        axis: what its levels scale.
        sizes: sizes of its levels, the largest first.
        parts: the class of its part rule.
    """

    model: str = "hetfl.HeteroFL"
    axis: str = "width"
    sizes: tuple[float, ...] = (1.0, 0.5, 0.25)
    parts: str = "hetfl.parts.Prefix"


METHODS = {
    "heterofl": Method(),
    "fedrolex": Method(parts="hetfl.parts.Rolling"),
    "federated_dropout": Method(parts="hetfl.parts.RandomChannels"),
    "depthfl": Method("hetfl.DepthFL", "depth", (4, 3, 2, 1)),
    "fedavg": Method("hetfl.FedAvg", sizes=(1.0,)),
}
"""The values of ``--method``; ``-c method/NAME`` has all methods."""


def method_named(name: str) -> Method:
    """Return a method.

    Raises:
        ConfigurationError: there is no method of this name for new projects.
    """
    if name not in METHODS:
        raise ConfigurationError(
            f"Expected --method of {', '.join(METHODS)} but got {name!r}{suggestion(name, list(METHODS))}"
        )
    return METHODS[name]


def sizes_of(text: str | None, method: Method) -> tuple[float, ...]:
    """Return the sizes of levels, from an option such as ``1,0.5,0.25``; None: those of the method.

    Raises:
        ConfigurationError: they are not numbers that fall from 1 (widths), or whole numbers that fall to 1 (depths).
    """
    if text is None:
        return method.sizes
    try:
        sizes = tuple(float(each) for each in text.split(","))
    except ValueError:
        sizes = ()
    falling = bool(sizes) and list(sizes) == sorted(set(sizes), reverse=True) and sizes[-1] > 0
    if method.axis == "depth":
        allowed, expected = (
            falling and all(size == int(size) <= 4 for size in sizes),
            "depths from 4 to 1, such as 4,2,1",
        )
    else:
        allowed, expected = falling and sizes[0] == 1, "widths that fall from 1, such as 1,0.5,0.25"
    if not allowed or (len(sizes) > 1 and method.model == "hetfl.FedAvg"):
        raise ConfigurationError(f"Expected --levels of {expected}, but got {text!r}")
    return sizes


def levels_text(sizes: tuple[float, ...], axis: str) -> str:
    """Return the lines of the levels, each with a comment."""
    lines = []
    for number, size in enumerate(sizes):
        what = "stages" if axis == "depth" else "of the channels"
        comment = f"{size:g} {what}" if axis == "depth" else "all channels" if size == 1 else f"{100 * size:g} % {what}"
        end = "; add as many levels as you like" if number == len(sizes) - 1 else ""
        value = f"{size:g}" if axis == "depth" else f"{size}"
        name = chr(ord("a") + number) if number < 26 else f"level{number}"
        lines.append(f"{f'      {name}: {{{axis}: {value}}}':<{COLUMN + 1}} # {comment}{end}")
    return "\n".join(lines)


def compressor_settings(name: str) -> dict[str, Any]:
    """Return the class and the arguments of a packaged compressor.

    Args:
        name: its name below ``compressor/``, such as ``top_k``.

    Raises:
        ConfigurationError: there is no such configuration.
    """
    known = [each.removeprefix(COMPRESSORS) for each in packaged_names() if each.startswith(COMPRESSORS)]
    file = packaged_file(f"{COMPRESSORS}{name}")
    if file is None:
        raise ConfigurationError(
            f"Expected --compressor of {', '.join(known)} but got {name!r}{suggestion(name, known)}"
        )
    settings: dict[str, Any] = parse_yaml(file.read_text(encoding="utf-8"))["model"]["init_args"]["uplink"]["init_args"]
    return settings


def compressor_text(name: str) -> str:
    """Return the lines of a packaged compressor and of the values' format, with comments."""
    settings = compressor_settings(name)
    compressor = settings["compressor"]
    arguments = yaml.safe_dump(compressor.get("init_args", {}), default_flow_style=True, width=1000).strip()
    half = str(settings.get("half_precision", False)).lower()
    return "\n".join(
        [
            f"          class_path: {compressor['class_path']}  # -c compressor/{name}; hetfl configs lists others",
            f"          init_args: {arguments}  # its arguments",
            f"        half_precision: {half:<4} # true: values that are not quantised are float16; false: float32",
        ]
    )
