"""``hetfl init``: a new project that can train at once, with a configuration, a net, and example data."""

from __future__ import annotations

import io
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from hetfl.arguments import suggestion
from hetfl.cli.parser import OneLineParser
from hetfl.cli.project_parts import METHODS, Method, compressor_text, levels_text, method_named, sizes_of
from hetfl.errors import ConfigurationError

TEMPLATES = Path(__file__).parent / "project"
CONFIGURATION = "project.yaml"
TRAIN_IMAGES, TEST_IMAGES = 20, 5
"""Numbers of example images per class."""


@dataclass(frozen=True)
class Example:
    """A kind of data for a new project.

    Attributes:
        data: the template of the section ``data``, without the settings that all data share.
        net: the template of ``net.py``.
        in_channels: number of channels or features of the example data.
        num_classes: number of classes of the example data.
        hidden: sizes of the hidden layers of the net at width 1.
        channels: description of ``in_channels``.
        files: returns the contents of the files of the example data, by name.
    """

    data: str
    net: str
    in_channels: int
    num_classes: int
    hidden: list[int]
    channels: str
    files: Callable[[], dict[str, bytes]] = dict

    def project(self, method: Method, sizes: tuple[float, ...], compressor: str) -> dict[str, bytes]:
        """Return the contents of the files of the project, by name.

        Args:
            method: the method.
            sizes: sizes of its levels.
            compressor: name of a packaged compressor.
        """
        data = _template(self.data) + _template("clients.yaml")
        hidden, net_class = (self.hidden, "net.Net")
        if method.axis == "depth":
            hidden, net_class = [16, 32, 32, 64][4 - int(sizes[0]) :], "hetfl.models.MultiExitConvNet"
        settings = {name: f"{getattr(self, name)!s:<2}" for name in ("in_channels", "num_classes")}
        configuration = Template(_template(CONFIGURATION)).substitute(
            settings,
            data=data,
            channels=self.channels,
            hidden=hidden,
            net_class=net_class,
            model=method.model,
            parts=method.parts,
            levels=levels_text(sizes, method.axis),
            compressor=compressor_text(compressor),
        )
        net = _template(self.net)
        return {CONFIGURATION: configuration.encode(), "net.py": net.encode(), **self.files()}


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _iris_table() -> dict[str, bytes]:
    """Return scikit-learn's iris measurements as a CSV file."""
    from sklearn.datasets import load_iris

    iris = load_iris(as_frame=True)
    table = iris.data.rename(columns=lambda name: name.removesuffix(" (cm)").replace(" ", "_"))
    table["species"] = iris.target_names[iris.target]
    return {"table.csv": table.to_csv(index=False).encode()}


def _digit_images() -> dict[str, bytes]:
    """Return some of scikit-learn's digits as PNG files, in one folder per class."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    files = {}
    for label in range(10):
        pixels_NHW = digits.images[digits.target == label][: TRAIN_IMAGES + TEST_IMAGES]
        for number, pixels_HW in enumerate((pixels_NHW * 255 / 16).round().astype("uint8")):
            part = "train" if number < TRAIN_IMAGES else "test"
            encoded = io.BytesIO()
            Image.fromarray(pixels_HW).save(encoded, format="png")
            files[f"images/{part}/{label}/{number:02d}.png"] = encoded.getvalue()
    return files


EXAMPLES = {
    "digits": Example("digits.yaml", "image_net.py", 1, 10, [16, 32], "channels of an image: 1 if grey, 3 in colour"),
    "csv": Example("csv.yaml", "table_net.py", 4, 3, [64, 64], "features of a row", _iris_table),
    "images": Example("images.yaml", "image_net.py", 3, 10, [32, 64], "channels: images are in colour", _digit_images),
}
"""The values of ``--data``."""


def main(args: Sequence[str]) -> None:
    """Write a project into a folder; existing files are never overwritten.

    Args:
        args: the arguments after the verb.

    Raises:
        ConfigurationError: an option has an unknown value, or the project cannot be written into the folder.
    """
    parser = OneLineParser(
        prog="hetfl init",
        description="Write a commented configuration and a net for a new project, which can train at once.",
    )
    parser.add_argument("folder", nargs="?", default=".", metavar="FOLDER", help="The folder; made if it is missing.")
    parser.add_argument("--data", type=str, default="digits", help=f"Kind of example data: {', '.join(EXAMPLES)}.")
    add = parser.add_argument
    add("--method", type=str, default="heterofl", help=f"Method: {', '.join(METHODS)}.")
    add("--levels", type=str, default=None, help="Widths of the levels, such as 1,0.5,0.25; for depthfl depths: 4,2,1.")
    add(
        "--compressor", type=str, default="top_k", help="Compressor of uploads, a packaged one: none, top_k, chain, ..."
    )
    given = parser.parse_args(list(args))
    if given.data not in EXAMPLES:
        raise ConfigurationError(
            f"Expected --data of {', '.join(EXAMPLES)} but got {given.data!r}{suggestion(given.data, list(EXAMPLES))}"
        )
    method = method_named(given.method)
    if method.axis == "depth" and EXAMPLES[given.data].net == "table_net.py":
        raise ConfigurationError(f"Expected --data of digits or images for {given.method} but got {given.data!r}")
    folder = Path(given.folder)
    files = EXAMPLES[given.data].project(method, sizes_of(given.levels, method), given.compressor)
    names = sorted({name.partition("/")[0] for name in files})
    check_free(folder, names)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    print(f"{'written':<18}{' '.join(str(folder / name) for name in names)}")
    print(f"{'next':<18}{_change_folder(folder)}hetfl fit -c {CONFIGURATION}")


def check_free(folder: Path, names: Sequence[str]) -> None:
    """Refuse a folder that cannot be written, or that has files of a project already.

    Args:
        folder: the folder; it may be missing.
        names: the files and folders to write into it.

    Raises:
        ConfigurationError: a file exists already, the folder is read-only, or a part of its path is a file.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigurationError(f"Expected a folder to write a project into but got {folder}: {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigurationError(f"Expected a folder to write a project into but got {folder}: {nearest} is read-only")
    for name in names:
        if os.path.lexists(folder / name):
            raise ConfigurationError(f"Expected no {name} in {folder} but found one: hetfl init overwrites nothing")


def _change_folder(folder: Path) -> str:
    return "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
