"""Reduction of jsonargparse's errors, which are trees of lines, to one line."""

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
    if denied := DENIED.search(message):  # the other reasons are about types, not about trust
        packages = "of the packages in HETFL_TRUSTED" if denied[2] == "*" else f"outside of {denied[2]}"
        reasons = [f"Expected a class or function {packages} but got {denied[1]}"]
    if unmet := [text for text in reasons if text.startswith("Requirement '")]:  # the others are about other types
        reasons = unmet
    reason = "; ".join(dict.fromkeys(reasons)) or "not valid"
    reason = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", reason)
    reason = reason.replace("typing.Literal", "")
    given = VALUE.findall(message)
    if given and not reason.endswith("?") and given[-1] not in reason and "(" not in given[-1]:
        reason += f" but got {given[-1]}"
    return printable(f"{'.'.join(path)}: {reason}" if path else reason, LONGEST_MESSAGE)
