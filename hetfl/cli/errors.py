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
DENIED = re.compile(r"Importing '([^']*)' is not allowed, denied by the '([^']*)' entry of the import path denylist\.")
LONGEST = 1000
"""Characters of a line: a value may be a whole file."""
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
    if denied := DENIED.search(message):  # what other types would have been accepted says nothing
        packages = "of the packages in HETFL_TRUSTED" if denied[2] == "*" else f"outside of {denied[2]}"
        reasons = [f"Expected a class or function {packages} but got {denied[1]}"]
    said = "; ".join(dict.fromkeys(reasons)) or "not valid"
    said = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", said)
    said = said.replace("typing.Literal", "")
    given = VALUE.findall(message)
    if given and given[-1] not in said and "(" not in given[-1]:
        said += f" but got {given[-1]}"
    return printable(f"{'.'.join(path)}: {said}" if path else said, LONGEST_MESSAGE)
