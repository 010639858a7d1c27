"""jsonargparse explains a wrong value in a tree of lines; this keeps the one that matters."""

from __future__ import annotations

import re

from hetfl.errors import LONGEST_MESSAGE
from hetfl.printable import printable

KEY = re.compile(r'(?:Parser key|[Kk]ey) "([^"]+)":?')
NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes:|Errors:|Given value type:|Given value:"
    r"|Problem with given class_path .*:$|Expected a <class 'NoneType'>"
    r"|Expected a path but .* not accessible or invalid$"
)
BEFORE = re.compile(r"^(?:Type .* expects a function or a callable class: |Call to compute_fn of link .* failed: )")
AFTER = re.compile(r"\.? Got value: Namespace\(.*$")
VALUE = re.compile(r"^ *Given value: (.{1,60})$", re.MULTILINE)


def condense(message: str) -> str:
    r"""Return the key path and the innermost reason of a message, on one line.

    >>> condense('Parser key "model":\n  Errors:\n    - Parser key "net":\n        no such file')
    'model.net: no such file'
    """
    path: list[str] = []
    reasons: list[str] = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ").strip()
        text = AFTER.sub("", BEFORE.sub("", text))
        key = KEY.match(text)
        if key:
            path.append(key[1])
            text = text[key.end() :].strip()
        if text and not NOISE.match(text):
            reasons.append(text)
    said = "; ".join(dict.fromkeys(reasons)) or "not valid"
    said = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", said)
    said = said.replace("typing.Literal", "")
    given = VALUE.findall(message)
    if given and given[-1] not in said and "(" not in given[-1]:
        said += f" but got {given[-1]}"
    return printable(f"{'.'.join(path)}: {said}" if path else said, LONGEST_MESSAGE)
