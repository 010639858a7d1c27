"""The nearest name that a parser knows, for one that it does not know."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Collection

from hetfl.arguments import suggestion

OPTIONS = (
    re.compile(r"(?P<dashes>)Group '(?P<group>[^']+)' does not accept option '(?P<name>[^']+)'"),
    re.compile(r"(?P<dashes>)(?P<group>)(?:Option|Subcommand '\w+' does not accept option) '(?P<name>[^']+)'.*"),
    re.compile(r"(?P<group>)unrecognized arguments: (?P<dashes>--)(?P<name>[^\s=]+).*", re.DOTALL),
)
"""What jsonargparse says of an option that a parser does not have."""
MEMBER = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'(?!: did)")
CLASS = re.compile(r"Expected a dot import path string: (\w+)\b(?!: did|\.)")
"""What jsonargparse says of a class that it does not find; an outer parser sees what an inner one has suggested."""


def with_suggestion(message: str, options: Collection[str]) -> str:
    """Return a message of jsonargparse with the nearest known name; unchanged if none is near.

    Args:
        message: a single line about an option, or a text with a line about a class of a module.
        options: the names of the parser's options, dotted, without dashes.

    >>> with_suggestion("Option 'epochz' is not accepted", ["epochs", "batch_size"])
    "Option 'epochz' is not accepted: did you mean 'epochs'?"
    """
    for pattern in OPTIONS:
        if match := pattern.fullmatch(message):
            group = f"{match['group']}." if match["group"] else ""
            near = nearest_option(group + match["name"], options)
            return f"{message}: did you mean '{match['dashes']}{near.removeprefix(group)}'?" if near else message
    return CLASS.sub(_with_class, MEMBER.sub(_with_member, message))


def nearest_option(unknown: str, known: Collection[str]) -> str:
    """Return the known option that is nearest to an unknown one; empty if none is near.

    A part of a dotted name may be misspelt, or the parts before the last one may be missing.

    >>> known = ["trainer.max_epochs", "trainer.devices", "model", "model.help"]
    >>> [nearest_option(name, known) for name in ("trainer.max_epoch", "trianer.devices", "max_epochs", "modl.net")]
    ['trainer.max_epochs', 'trainer.devices', 'trainer.max_epochs', 'model.net']
    """
    first, dot, rest = unknown.partition(".")
    groups = {name.partition(".")[0] for name in known}
    if dot and first not in groups:
        group = _nearest(first, groups)
        right = f"{group}.{rest}"
        return (right if right in known else _nearest_sibling(right, known) or right) if group else ""
    if near := _nearest_sibling(unknown, known):
        return near
    return next((name for name in known if name.endswith(f".{unknown}")), "")


def _nearest_sibling(unknown: str, known: Collection[str]) -> str:
    """Return the nearest of the names that are alike up to the last part."""
    group = unknown.rpartition(".")[0]
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == group}
    return siblings.get(_nearest(unknown.rpartition(".")[2], siblings), "")


def _nearest(unknown: str, known: Collection[str]) -> str:
    return next(iter(difflib.get_close_matches(unknown, sorted(known), n=1)), "")


def _with_member(match: re.Match[str]) -> str:
    """Add the nearest class of a module that jsonargparse has imported."""
    return match[0] + suggestion(match[2], _classes_of(match[1]))


def _with_class(match: re.Match[str]) -> str:
    """Add the nearest class of this package."""
    modules = [name for name in list(sys.modules) if name.partition(".")[0] == "hetfl"]
    return match[0] + suggestion(match[1], [name for module in modules for name in _classes_of(module)])


def _classes_of(module: str) -> list[str]:
    return [name for name, value in vars(sys.modules.get(module, object)).items() if isinstance(value, type)]
