"""The changes that are made to a file: small mistakes that leave a valid program.

A change replaces a piece of the text and keeps the rest. Text for readers is never changed: annotations,
docstrings, error messages, warnings and formatted strings.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping

from tests.mutants.source import Change, Function, Source

COMPARISONS: Mapping[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: (r"<(?![<=])", "<="),
    ast.LtE: (r"<=", "<"),
    ast.Gt: (r">(?![>=])", ">="),
    ast.GtE: (r">=", ">"),
    ast.Eq: (r"==", "!="),
    ast.NotEq: (r"!=", "=="),
    ast.In: (r"\bin\b", "not in"),
    ast.NotIn: (r"\bnot\s+in\b", "in"),
    ast.Is: (r"\bis\b", "is not"),
    ast.IsNot: (r"\bis\s+not\b", "is"),
}
ARITHMETIC: Mapping[type[ast.operator], tuple[str, str]] = {
    ast.Add: (r"\+", "-"),
    ast.Sub: (r"-", "+"),
    ast.Mult: (r"\*", "/"),
    ast.Div: (r"/", "*"),
    ast.Mod: (r"%", "//"),
    ast.Pow: (r"\*\*", "*"),
    ast.BitAnd: (r"&", "|"),
    ast.BitOr: (r"\|", "&"),
    ast.LShift: (r"<<", ">>"),
    ast.RShift: (r">>", "<<"),
}
_PAIRS = {
    "max": "min",
    "any": "all",
    "maximum": "minimum",
    "argmax": "argmin",
    "floor": "ceil",
    "intersection": "union",
    "zeros": "ones",
    "zeros_like": "ones_like",
    "new_zeros": "new_ones",
    "clamp_min": "clamp_max",
}
SWAPS = {
    "mean": "sum",
    "sorted": "list",
    "reversed": "list",
    "add_": "sub_",
    **_PAIRS,
    **{second: first for first, second in _PAIRS.items()},
}
"""Functions and methods, and the function that replaces each."""
DROPPED = {"abs", "clone", "copy", "square", "sqrt", "clamp", "nan_to_num", "neg", "T", "flatten", "log"}
"""Methods whose call is removed: ``x.abs()`` becomes ``x``."""
UNWRAPPED = {"abs", "round", "sqrt", "square", "deepcopy"}
"""Functions whose call is removed: ``abs(x)`` becomes ``(x)``."""
KEYWORDS = {"correction", "descending", "reverse", "key", "default", "generator", "largest", "start", "stable", "alpha"}
"""Keyword arguments that are removed from any call; calls of the project's functions lose any default argument."""
MESSAGES = re.compile(r"(?:.*Error|warn|rank_zero_warn|rank_zero_info|info|debug|warning|print|deprecated|wraps)")
"""Pattern of functions whose calls only produce messages for readers."""
FOR_READERS = {"__repr__", "__str__", "describe"}
"""Methods that return text for readers."""

Found = Iterator[Change]


def changes_of(source: Source, defaults: Mapping[str, set[str]]) -> list[Change]:
    """Return all changes of a file in textual order; some of them may not be a valid program.

    Args:
        source: the source file.
        defaults: arguments with a default, by name of a function or class of the project.
    """
    return sorted(_Finder(source, defaults).walk(source.tree), key=lambda each: (each.start, each.stop, each.new))


def _name_of(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _is_text(node: ast.expr) -> bool:
    """Return whether a node is written as text or a path; ``+`` and ``/`` are not arithmetic on these."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str | bytes)
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or bool(re.search(r"path|folder|file$|name$", _name_of(node)))


def _only_raises(body: list[ast.stmt]) -> bool:
    return all(isinstance(each, ast.Raise) or _is_message(each) for each in body)


def _names_a_type(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Assign) else None
    return isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr)


def _is_message(statement: ast.stmt) -> bool:
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and bool(MESSAGES.fullmatch(_name_of(call.func)))


class _Finder:
    """Walks through a syntax tree and yields the changes of each node."""

    def __init__(self, source: Source, defaults: Mapping[str, set[str]]) -> None:
        self.source, self.defaults = source, defaults
        self._initial = False  # inside a constructor
        self._kinds: dict[type[ast.AST], Callable[..., Found]] = {
            ast.Compare: self._compare,
            ast.BinOp: self._arithmetic,
            ast.BoolOp: self._boolean,
            ast.UnaryOp: self._unary,
            ast.If: self._condition,
            ast.IfExp: self._condition,
            ast.comprehension: self._filters,
            ast.Constant: self._constant,
            ast.Call: self._call,
            ast.Expr: self._statement,
            ast.Assign: self._assignment,
            ast.AugAssign: self._augmented,
            ast.Break: lambda node: self._whole(node, "continue", "loop"),
            ast.Continue: lambda node: self._whole(node, "break", "loop"),
            ast.Slice: self._slice,
        }

    def walk(self, node: ast.AST) -> Found:
        """Yield the changes of a node and of its children."""
        if self._skipped(node):
            return
        before = self._initial
        if isinstance(node, Function):
            self._initial = node.name in {"__init__", "__post_init__"}
        kind = self._kinds.get(type(node))
        if kind is not None:
            yield from kind(node)
        for child in self._children(node):
            yield from self.walk(child)
        self._initial = before

    def _skipped(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
            return True
        if isinstance(node, Function):
            return node.name in FOR_READERS or any(_name_of(each) == "overload" for each in node.decorator_list)
        if isinstance(node, ast.Call):
            return bool(MESSAGES.fullmatch(_name_of(node.func)))
        return isinstance(node, ast.If) and _name_of(node.test) in {"TYPE_CHECKING"}

    def _children(self, node: ast.AST) -> Iterator[ast.AST]:
        if isinstance(node, Function):  # annotations and decorators are left out
            yield from (each for each in (*node.args.defaults, *node.args.kw_defaults) if each is not None)
            yield from node.body
        elif isinstance(node, ast.ClassDef):
            yield from node.body
        elif isinstance(node, ast.AnnAssign):
            yield from [] if node.value is None else [node.value]
        elif isinstance(node, ast.Call) and _name_of(node.func) in {"cast", "isinstance"}:
            yield from node.args[1:] if _name_of(node.func) == "cast" else node.args[:1]
        elif isinstance(node, ast.Module):
            yield from (each for each in node.body if not _names_a_type(each))
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield from [node.slice]
        else:
            yield from ast.iter_child_nodes(node)

    def _whole(self, node: ast.expr | ast.stmt, new: str, operator: str) -> Found:
        yield Change(*self.source.span(node), new, operator)

    def _between(self, left: ast.expr, right: ast.expr, pattern: str, new: str, operator: str) -> Found:
        """Yield the change of the operator between two operands."""
        start, stop = self.source.span(left)[1], self.source.span(right)[0]
        gap = re.sub(rb"#[^\n]*", lambda match: b" " * len(match[0]), self.source.raw[start:stop])
        if sign := re.search(pattern.encode(), gap):
            yield Change(start + sign.start(), start + sign.end(), new, operator)

    def _compare(self, node: ast.Compare) -> Found:
        operands = [node.left, *node.comparators]
        for left, sign, right in zip(operands, node.ops, operands[1:], strict=False):
            yield from self._between(left, right, *COMPARISONS[type(sign)], "comparison")

    def _arithmetic(self, node: ast.BinOp) -> Found:
        if _is_text(node.left) or _is_text(node.right):
            return
        if isinstance(node.op, ast.FloorDiv):
            left, right = self.source.text(node.left), self.source.text(node.right)
            yield from self._whole(node, f"(-(-({left}) // ({right})))", "rounded up")
        elif type(node.op) in ARITHMETIC:
            yield from self._between(node.left, node.right, *ARITHMETIC[type(node.op)], "arithmetic")
        if isinstance(node.op, ast.Mult | ast.Div | ast.Sub | ast.Pow):
            yield from self._whole(node, f"({self.source.text(node.left)})", "operand left out")

    def _boolean(self, node: ast.BoolOp) -> Found:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield from self._between(left, right, rf"\b{old}\b", new, "boolean")
        for each in node.values:
            yield from self._whole(each, str(old == "and"), "operand left out")

    def _unary(self, node: ast.UnaryOp) -> Found:
        if isinstance(node.op, ast.Not) or (
            isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant)
        ):
            yield from self._whole(node, f"({self.source.text(node.operand)})", "negation")

    def _condition(self, node: ast.If | ast.IfExp) -> Found:
        yield from self._whole(node.test, "False", "condition")
        if isinstance(node, ast.IfExp) or not _only_raises(node.body):
            yield from self._whole(node.test, "True", "condition")

    def _filters(self, node: ast.comprehension) -> Found:
        for test in node.ifs:
            yield from self._whole(test, "True", "filter")

    def _constant(self, node: ast.Constant) -> Found:
        value = node.value
        if isinstance(value, bool):
            yield from self._whole(node, str(not value), "constant")
        elif isinstance(value, int) and abs(value) < 2**20:
            yield from self._whole(node, str(value + 1), "constant")
            yield from self._whole(node, f"({value - 1})", "constant") if value > 0 else ()
        elif isinstance(value, float) and (value == 0.0 or abs(value) >= 1e-3):
            yield from self._whole(node, repr(value * 1.5 if value else 1.0), "constant")

    def _call(self, node: ast.Call) -> Found:
        name, source = _name_of(node.func), self.source
        stop = source.span(node.func)[1]
        if name in SWAPS:
            yield Change(stop - len(name), stop, SWAPS[name], "another function")
        if name in DROPPED and isinstance(node.func, ast.Attribute) and not isinstance(node.func.value, ast.Name):
            yield from self._whole(node, f"({source.text(node.func.value)})", "method left out")
        elif name in DROPPED and isinstance(node.func, ast.Attribute) and not node.args:
            yield from self._whole(node, source.text(node.func.value), "method left out")
        if name in UNWRAPPED and len(node.args) == 1:
            yield from self._whole(node, f"({source.text(node.args[0])})", "function left out")
        if name == "range" and node.args:
            last = node.args[-1] if len(node.args) < 3 else node.args[1]
            yield from self._whole(last, f"({source.text(last)}) - 1", "bound")
        yield from self._keywords(node, name)

    def _keywords(self, node: ast.Call, name: str) -> Found:
        given: list[ast.expr | ast.keyword] = [*node.args, *node.keywords]
        parts = sorted(given, key=lambda each: self.source.span(each)[0])
        befores: list[ast.expr | ast.keyword | None] = [None, *parts]
        for before, part in zip(befores, parts, strict=False):
            if not isinstance(part, ast.keyword) or part.arg is None:
                continue
            if part.arg in KEYWORDS | self.defaults.get(name, set()) or name == "replace":
                start, stop = self.source.span(part)
                comma = re.match(rb"\s*,\s*", self.source.raw[stop:]) if before is None else None
                start = self.source.span(before)[1] if before is not None else start
                yield Change(start, stop + (comma.end() if comma else 0), "", "argument left out")

    def _statement(self, node: ast.Expr) -> Found:
        of_base = "super().__init__" in self.source.text(node)
        if isinstance(node.value, ast.Call) and not _is_message(node) and not of_base:
            yield from self._whole(node, "pass", "call left out")

    def _assignment(self, node: ast.Assign) -> Found:
        if not self._initial and all(isinstance(each, ast.Attribute | ast.Subscript) for each in node.targets):
            yield from self._whole(node, "pass", "assignment left out")

    def _augmented(self, node: ast.AugAssign) -> Found:
        yield from self._between(node.target, node.value, r"[^\s=]+=", "=", "assignment")
        if isinstance(node.op, ast.Add | ast.Sub):
            sign = "-=" if isinstance(node.op, ast.Add) else "+="
            yield from self._between(node.target, node.value, r"[+-]=", sign, "arithmetic")

    def _slice(self, node: ast.Slice) -> Found:
        for bound in (node.lower, node.upper):
            if bound is not None and not isinstance(bound, ast.Constant | ast.UnaryOp):
                yield from self._whole(bound, f"({self.source.text(bound)}) + 1", "bound")
