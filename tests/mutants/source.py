"""A Python source file: byte positions of its syntax tree's nodes, and the text with one change."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Change:
    """A piece of a file and its replacement.

    Attributes:
        start: offset of the first byte.
        stop: offset after the last byte.
        new: the replacement text.
        operator: kind of the change, for reports.
    """

    start: int
    stop: int
    new: str
    operator: str


class Source:
    """The text of a file with its syntax tree.

    Positions in a syntax tree count bytes of UTF-8, and so do all positions here.

    Args:
        text: the text of the file.
    """

    def __init__(self, text: str) -> None:
        self.raw = text.encode()
        self.tree = ast.parse(text)
        self._starts = [0]
        for line in self.raw.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def span(self, node: ast.expr | ast.stmt | ast.keyword | ast.arg) -> tuple[int, int]:
        """Return the start and end of a node, in bytes."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._starts[node.lineno - 1] + node.col_offset, self._starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.expr | ast.stmt) -> str:
        """Return the source text of a node."""
        start, stop = self.span(node)
        return self.raw[start:stop].decode()

    def line(self, offset: int) -> int:
        """Return the line number, from 1, of a byte offset."""
        return self.raw.count(b"\n", 0, offset) + 1

    def applied(self, change: Change) -> str:
        """Return the text with one change applied."""
        return (self.raw[: change.start] + change.new.encode() + self.raw[change.stop :]).decode()

    def lines_of(self, change: Change) -> tuple[str, str]:
        """Return the lines that a change touches, before and after it, without their common indentation."""
        start = self.raw.rfind(b"\n", 0, change.start) + 1
        stop = self.raw.find(b"\n", change.stop)
        stop = len(self.raw) if stop < 0 else stop
        before, after = self.raw[start : change.start].decode(), self.raw[change.stop : stop].decode()
        old = before + self.raw[change.start : change.stop].decode() + after
        return _without_indentation(old), _without_indentation(before + change.new + after)

    @cached_property
    def functions(self) -> list[tuple[int, int, str]]:
        """First line (decorators included), last line and qualified name of all functions, outer functions first."""
        spans: list[tuple[int, int, str]] = []

        def walk(node: ast.AST, prefix: str) -> None:
            for child in ast.iter_child_nodes(node):
                name = prefix
                if isinstance(child, Function | ast.ClassDef):
                    name = f"{prefix}.{child.name}" if prefix else child.name
                if isinstance(child, Function):
                    first = min([child.lineno, *(each.lineno for each in child.decorator_list)])
                    spans.append((first, child.end_lineno or child.lineno, name))
                walk(child, name)

        walk(self.tree, "")
        return spans

    def function_at(self, line: int) -> str:
        """Return the qualified name of the innermost function around a line; "" outside of all functions."""
        return next((name for first, last, name in reversed(self.functions) if first <= line <= last), "")


def _without_indentation(text: str) -> str:
    return textwrap.dedent(text) if "\n" in text else text.lstrip()


def defaults_in(tree: ast.AST) -> Iterator[tuple[str, set[str]]]:
    """Yield the names of a file's functions and classes, with their arguments that have a default."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node.name, _defaults(node.args)
        elif isinstance(node, ast.ClassDef):
            fields = {
                part.target.id
                for part in node.body
                if isinstance(part, ast.AnnAssign) and part.value is not None and isinstance(part.target, ast.Name)
            }
            made = [part for part in node.body if isinstance(part, Function) and part.name == "__init__"]
            yield node.name, fields.union(*(_defaults(part.args) for part in made))


def _defaults(arguments: ast.arguments) -> set[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return {each.arg for each in positional[len(positional) - len(arguments.defaults) :]} | {
        each.arg for each, default in named if default is not None
    }
