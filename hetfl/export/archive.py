"""pt2 archives without anything that runs code when torch reads them.

Torch's reader trusts an archive: it unpickles weights, constants and sample inputs where the archive says so, runs
guards and symbolic sizes as Python, puts names into generated Python code, loads compiled libraries, and calls any
function below ``torch`` that a node names. So an archive is never given to it as it comes. What a prediction needs is
raw tensors, and a graph in JSON whose texts are names, symbols and operators; these are checked one by one and copied
into a new archive, and whatever else is found is refused.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import zipfile
from typing import Any

from hetfl.errors import ConfigurationError
from hetfl.reading import parse_json

PROGRAM = "models/model.json"
CONFIGS = {
    "data/weights/model_weights_config.json": "data/weights/",
    "data/constants/model_constants_config.json": "data/constants/",
}
"""Lists of the tensors in the archive, and the folders where these are."""
TENSOR = re.compile(r"data/(?:weights/weight|constants/tensor)_\d{1,6}")
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
MARKS = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little", ".data/version": b"6\n"}
IGNORED = ".data/serialization_id"

NAME = re.compile(r"[A-Za-z_]\w{0,200}", re.ASCII)
PATH = re.compile(r"[\w.]{1,1000}", re.ASCII)
OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!save\.|from_file\.)_?[a-z]\w*\.[A-Za-z]\w*|_operator\.(?:add|sub|mul|floordiv|mod|neg)",
    re.ASCII,
)
"""Torch's tensor operators, but for the two that touch files, and arithmetic on sizes."""
EXPRESSION = re.compile(
    r"(?:Symbol\('[su]\d+'(?:, [a-z]+=(?:True|False))*\)|(?:Integer|Add|Mul|FloorDiv|Mod|Max|Min)\(|[-\d(), ])*",
    re.ASCII,
)
"""Sizes as SymPy prints them."""
NUMBER = re.compile(r"-?Infinity|NaN")
WORD = re.compile(r"[\w, .>-]{0,100}", re.ASCII)
"""Texts that operators take: kinds of GELU, division and padding, Einstein sums."""
LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
ARGUMENTS = [
    {"type": "builtins.tuple", "context": "null", "children_spec": [LEAF]},
    {"type": "builtins.dict", "context": "[]", "children_spec": []},
]
CALL = json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": ARGUMENTS}])
"""How torch writes that one tensor goes in."""
RESULT = json.dumps([1, LEAF])
"""How torch writes that one tensor comes out."""
TEXTS: dict[str, re.Pattern[str]] = {
    **dict.fromkeys(("name", "as_name", "forward_arg_names"), NAME),
    **dict.fromkeys(("parameter_name", "buffer_name", "tensor_constant_name"), PATH),
    **dict.fromkeys(("as_float", "as_floats"), NUMBER),
    "target": OPERATOR,
    "expr_str": EXPRESSION,
    "as_string": WORD,
    "in_spec": re.compile(re.escape(CALL)),
    "out_spec": re.compile(re.escape(RESULT)),
    "fqn": re.compile(""),
    "type": re.compile("cpu"),
    "verifiers": re.compile(r"\w{0,40}", re.ASCII),
    "torch_version": re.compile(r"[\w.+<=-]{0,80}", re.ASCII),
    "path_name": re.compile(r"(?:weight|tensor)_\d{1,6}"),
}
"""What a text may be, by the key under which it stands; under any other key there may be none."""


def cleaned(data: bytes) -> bytes:
    """Return a pt2 archive with the same tensors and the same graph, and nothing else; equal for equal contents.

    Guards, sample inputs and what is noted at the nodes (source lines with paths on the machine that wrote it) are left
    out.

    Raises:
        ConfigurationError: it is no such archive, or torch would run code of its own; names the part.
    """
    try:
        parts = _parts(data)
        program = _program(parse_json(parts[PROGRAM]))
        configs = {name: _config(parse_json(parts[name]), parts, folder) for name, folder in CONFIGS.items()}
    except ConfigurationError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise ConfigurationError(f"Expected a pt2 archive but got: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"Expected an exported program in the pt2 archive but got none: {error}") from None
    tensors = {name: part for name, part in parts.items() if TENSOR.fullmatch(name)}
    texts = {name: json.dumps(part).encode() for name, part in {**configs, PROGRAM: program}.items()}
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, part in {**tensors, **texts, SAMPLE_INPUTS: b"", **MARKS}.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), part)
    return target.getvalue()


def _parts(data: bytes) -> dict[str, bytes]:
    """Return the archive's files by name, each of a known kind."""
    parts: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        roots = {entry.filename.partition("/")[0] for entry in entries}
        if len(roots) != 1 or sum(entry.file_size for entry in entries) > len(data):
            raise ConfigurationError("Expected a pt2 archive with one folder of uncompressed files but got another")
        for entry in entries:
            name = entry.filename.partition("/")[2]
            known = name in (PROGRAM, SAMPLE_INPUTS, IGNORED, *CONFIGS, *MARKS) or TENSOR.fullmatch(name)
            if not known or name in parts or entry.compress_type != zipfile.ZIP_STORED:
                raise ConfigurationError(
                    f"Expected raw tensors and a graph in a pt2 archive but got {name!r:.100}, which torch would "
                    "unpickle, run or misread"
                )
            parts[name] = archive.read(entry)
    if parts.get(SAMPLE_INPUTS):
        raise ConfigurationError(
            "Expected a pt2 archive without sample inputs but got some, which torch would unpickle"
        )
    for name, mark in MARKS.items():
        if parts.get(name, mark) != mark:
            raise ConfigurationError(f"Expected {name} {mark!r} in a pt2 archive but got {parts[name][:20]!r}")
    return parts


def _config(config: dict[str, Any], parts: dict[str, bytes], folder: str) -> dict[str, Any]:
    """Return a list of tensors after a check of every entry."""
    for name, entry in config["config"].items():
        if entry["use_pickle"] is not False:
            raise ConfigurationError(f"Expected raw tensors in a pt2 archive but got {name!r:.100}, a pickle")
        raw = parts[folder + entry["path_name"]]
        if not raw and math.prod(size["as_int"] for size in entry["tensor_meta"]["sizes"]):
            raise ConfigurationError(f"Expected the values of tensor {name!r:.100} in a pt2 archive but got none")
    _check(config, "")
    return {"config": config["config"]}


def _program(program: dict[str, Any]) -> dict[str, Any]:
    """Return a program without what only describes it, after a check of every text that is left."""
    module = program["graph_module"]
    root = [entry for entry in module["module_call_graph"] if entry["fqn"] == ""]
    nodes = [{**node, "metadata": {}} for node in module["graph"]["nodes"]]
    bare = {
        **program,
        "guards_code": [],
        "graph_module": {
            **module,
            "graph": {**module["graph"], "nodes": nodes},
            "module_call_graph": root,
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
    }
    _check(bare, "")
    return bare


def _check(value: Any, key: str) -> None:
    """Refuse any text that is not of the kind that its key says: only texts can become code."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not PATH.fullmatch(name):
                raise ConfigurationError(f"Expected names in an exported program but got {name!r:.100}")
            _check(item, name)
    elif isinstance(value, list):
        for item in value:
            _check(item, key)
    elif isinstance(value, str) and not (key in TEXTS and TEXTS[key].fullmatch(value)):
        raise ConfigurationError(
            f"Expected an exported program of torch's tensor operators but got {key} {value!r:.100}"
        )
