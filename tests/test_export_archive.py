"""pt2 archives from strangers: refused, and no code of theirs is run."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import hetfl
from hetfl import ConfigurationError
from hetfl.export import export_submodel
from hetfl.export.archive import CALL, cleaned
from tests.conftest import small_levels, small_module
from tests.test_export import trained
from tests.test_export_safety import replace_content, said

WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
PROGRAM, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a good file."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("original") / "b.pt2"
    export_submodel(trained(small_module(levels=small_levels(1.0, 0.25))), "b", path)
    return path


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    """Return a copy of the good file, and of its card, to be tampered with."""
    return Path(shutil.copytree(original.parent, tmp_path / "files")) / original.name


def repacked(data: bytes, change: Callable[[dict[str, bytes]], object], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a pt2 archive with changed parts."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(parts)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, part in parts.items():
            archive.writestr(f"archive/{name}", part)
    return target.getvalue()


def edited(name: str, change: Callable[[Any], object]) -> Callable[[dict[str, bytes]], None]:
    """Return a change of one JSON part."""

    def apply(parts: dict[str, bytes]) -> None:
        content = json.loads(parts[name])
        change(content)
        parts[name] = json.dumps(content).encode()

    return apply


def renamed(old: str, new: str) -> Callable[[dict[str, bytes]], None]:
    """Return a change of every text in the program that is ``old``."""

    def apply(parts: dict[str, bytes]) -> None:
        parts[PROGRAM] = parts[PROGRAM].replace(json.dumps(old).encode(), json.dumps(new).encode())

    return apply


def first_weight_pickled(pickled: bytes) -> Callable[[dict[str, bytes]], None]:
    def apply(parts: dict[str, bytes]) -> None:
        config = json.loads(parts[WEIGHTS])
        entry = next(iter(config["config"].values()))
        entry["use_pickle"] = True
        parts[WEIGHTS] = json.dumps(config).encode()
        parts[f"data/weights/{entry['path_name']}"] = pickled

    return apply


def object_constant(prefix: str, pickled: bytes) -> Callable[[dict[str, bytes]], None]:
    def apply(parts: dict[str, bytes]) -> None:
        entry = {"path_name": f"{prefix}_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        edited(CONSTANTS, lambda config: config["config"].update(stranger=entry))(parts)
        parts[f"data/constants/{prefix}_0"] = pickled

    return apply


def first_node(target: str, *arguments: dict[str, Any]) -> Callable[[dict[str, bytes]], None]:
    inputs = [{"name": "", "arg": argument, "kind": 1} for argument in arguments]
    return edited(
        PROGRAM, lambda program: program["graph_module"]["graph"]["nodes"][0].update(target=target, inputs=inputs)
    )


def sizes(expression: str) -> Callable[[dict[str, bytes]], None]:
    def change(program: Any) -> None:
        for tensor in program["graph_module"]["graph"]["tensor_values"].values():
            for size in tensor["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = expression

    return edited(PROGRAM, change)


def hostile_changes(marker: Path) -> dict[str, Callable[[dict[str, bytes]], object]]:
    """Return changes after which torch.export.load, or a call of what it returns, would make the folder ``marker``.

    (Torch 2.15 does for most of them; "operator", "guards" and "call" need more than is shown here.)
    """
    code = f"__import__('os').mkdir({str(marker)!r})"
    pickled = f"cos\nmkdir\n(S{str(marker)!r}\ntR.".encode()
    spec = json.dumps({"default_factory_module": "stranger", "default_factory_name": "X", "dict_context": []})
    tree = json.dumps([1, {"type": "collections.defaultdict", "context": spec, "children_spec": []}])
    return {
        "pickled weight": first_weight_pickled(pickled),
        "opaque object": object_constant("opaque_obj", pickled),
        "script object": object_constant("custom_obj", pickled),
        "weights of an old format": lambda parts: parts.update({"data/weights/model.pt": pickled}),
        "constants of an old format": lambda parts: parts.update({"data/constants/model.pt": pickled}),
        "sample inputs": lambda parts: parts.update({SAMPLES: pickled}),
        "a library": lambda parts: parts.update({"data/aotinductor/model/model.so": b"\x7fELF"}),
        "another program": lambda parts: parts.update({"models/other.json": parts[PROGRAM]}),
        "operator": first_node("torch.os.mkdir", {"as_string": str(marker)}),
        "operator of Python": first_node("_operator.call", {"as_string": str(marker)}),
        "operator on files": first_node(
            "torch.ops.aten.from_file.default", {"as_string": str(marker)}, {"as_bool": True}, {"as_int": 72}
        ),
        "operator that saves": first_node("torch.ops.aten.save.default", {"as_tensor": {"name": "x"}}),
        "operator of higher order": first_node("torch.ops.higher_order.wrap", {"as_operator": "torch.os.mkdir"}),
        "size": sizes(code),
        "size by methods": sizes("Symbol('s0').__class__"),
        "name of an input": renamed("x", f"x=({code})"),
        "name of a node": renamed("linear", f"linear = {code};linear"),
        "name of a parameter": renamed("p_net_classifier_bias", f"p=({code})"),
        "path of a parameter": renamed("net.classifier.bias", f"net.classifier.bias\n    {code}"),
        "call": renamed(CALL, tree),
    }


@pytest.mark.parametrize("case", hostile_changes(Path()))
def test_a_hostile_program_is_refused_and_runs_nothing(case: str, path: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    data = repacked(path.read_bytes(), hostile_changes(marker)[case])
    assert data != repacked(path.read_bytes(), lambda parts: None)
    with pytest.raises(ConfigurationError):  # before torch sees it
        cleaned(data)
    replace_content(path, data)
    said(path)
    assert not marker.exists()


def test_what_only_describes_a_program_is_left_out(path: Path, tmp_path: Path) -> None:
    code = f"__import__('os').mkdir({str(tmp_path / 'ran')!r})"

    def describe(program: Any) -> None:
        program["guards_code"] = [code]
        program["graph_module"]["graph"]["nodes"][0]["metadata"] = {"stack_trace": f"\n{code}\n", "custom": code}
        program["graph_module"]["metadata"] = {"custom": code}

    original = path.read_bytes()
    data = repacked(original, edited(PROGRAM, describe))
    assert data != original
    assert cleaned(data) == original == cleaned(original)
    replace_content(path, data)
    assert hetfl.load(path)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert not (tmp_path / "ran").exists()


def test_an_archive_that_two_readers_could_read_differently_is_refused(path: Path) -> None:
    original = path.read_bytes()
    packed = repacked(
        original, lambda parts: parts.update({"data/weights/weight_0": bytes(10**6)}), zipfile.ZIP_DEFLATED
    )
    replace_content(path, packed)
    assert "one folder of uncompressed files" in said(path)
    target = io.BytesIO(original)
    with zipfile.ZipFile(target, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("archive/models/model.json", b"{}")
    replace_content(path, target.getvalue())
    assert "'models/model.json', which torch would unpickle, run or misread" in said(path)
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr("elsewhere/models/other.json", b"{}")
    replace_content(path, target.getvalue())
    assert "one folder of uncompressed files" in said(path)


def test_a_tensor_without_values_takes_no_memory(path: Path) -> None:
    def enlarge(config: Any) -> None:
        entry = next(entry for entry in config["config"].values() if entry["path_name"] == "weight_0")
        entry["tensor_meta"]["sizes"] = [{"as_int": 10**12}]

    def change(parts: dict[str, bytes]) -> None:
        edited(WEIGHTS, enlarge)(parts)
        parts["data/weights/weight_0"] = b""

    replace_content(path, repacked(path.read_bytes(), change))
    assert "Expected the values of tensor" in said(path)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container of a JSON value with every key or position in it."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


@pytest.mark.parametrize("name", [PROGRAM, WEIGHTS])
def test_an_archive_of_nonsense_is_refused_or_harmless(original: Path, name: str) -> None:
    data, choose = original.read_bytes(), random.Random(1)
    nonsense: list[Any] = [
        None,
        True,
        -1,
        1e300,
        "",
        "os.system('ls')",
        [],
        {},
        [[]],
        {"as_operator": "torch.os.system"},
    ]
    for _ in range(150):

        def spoil(content: Any) -> None:
            container, key = choose.choice(list(places(content)))
            container[key] = choose.choice(nonsense)

        wrong = repacked(data, edited(name, spoil))
        try:
            accepted = cleaned(wrong)
        except ConfigurationError:
            continue
        assert b"os.system" not in accepted


def test_random_bytes_are_no_archive(original: Path) -> None:
    data, choose = original.read_bytes(), random.Random(1)
    for _ in range(200):
        wrong = bytearray(data)
        for _ in range(choose.randrange(1, 4)):
            wrong[choose.randrange(len(wrong))] ^= 1 << choose.randrange(8)
        with contextlib.suppress(ConfigurationError):
            assert cleaned(bytes(wrong)) == data  # only what is not read may differ
        with contextlib.suppress(ConfigurationError):
            assert not cleaned(bytes(wrong[: choose.randrange(len(wrong))]))
