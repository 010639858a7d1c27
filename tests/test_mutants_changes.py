"""The changes that `make mutants` makes to a statement, and code that it never changes."""

from __future__ import annotations

import pytest

from tests.mutants.operators import changes_of
from tests.mutants.source import Source, defaults_in


def changed_texts(text: str) -> set[str]:
    source = Source(text)
    return {source.applied(change) for change in changes_of(source, dict(defaults_in(source.tree)))}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r = a < b\n", {"r = a <= b\n"}),
        ("r = a <= b < c\n", {"r = a < b < c\n", "r = a <= b <= c\n"}),
        ("r = (a) not  in (b)\n", {"r = (a) in (b)\n"}),
        ("r = a is not b\n", {"r = a is b\n"}),
        ("r = a + b\n", {"r = a - b\n"}),
        ("r = (a + b) * c\n", {"r = (a - b) * c\n", "r = (a + b) / c\n", "r = (a + b)\n"}),
        ("r = a // b\n", {"r = (-(-(a) // (b)))\n"}),
        ("r = 'μ' and a / b\n", {"r = 'μ' or a / b\n", "r = 'μ' and a * b\n", "r = 'μ' and (a)\n"}),
        ("r = not a\n", {"r = (a)\n"}),
        ("r = -a\n", {"r = (a)\n"}),
        ("r = f(3)\n", {"r = f(4)\n", "r = f((2))\n"}),
        ("r = f(0)\n", {"r = f(1)\n"}),
        ("r = f(True, 0.5)\n", {"r = f(False, 0.5)\n", "r = f(True, 0.75)\n"}),
        ("if a:\n    b = c\n", {"if True:\n    b = c\n", "if False:\n    b = c\n"}),
        ("if a:\n    raise ValueError(b + c)\n", {"if False:\n    raise ValueError(b + c)\n"}),
        ("r = [a for a in b if c]\n", {"r = [a for a in b if True]\n"}),
        ("self.f(a)\n", {"pass\n"}),
        ("self.a = b\n", {"pass\n"}),
        ("a += b\n", {"a = b\n", "a -= b\n"}),
        ("r = max(a, b)\n", {"r = min(a, b)\n"}),
        ("r = a.min()\n", {"r = a.max()\n"}),
        ("r = sorted(a, key=b)\n", {"r = list(a, key=b)\n", "r = sorted(a)\n"}),
        ("r = abs(a)\n", {"r = (a)\n"}),
        ("r = a[0].clone()\n", {"r = (a[0])\n", "r = a[1].clone()\n"}),
        ("r = range(a)\n", {"r = range((a) - 1)\n"}),
        ("r = a[b:]\n", {"r = a[(b) + 1:]\n"}),
        ("for a in b:\n    break\n", {"for a in b:\n    continue\n"}),
        ("r = f(  # a < b\n    c < d\n)\n", {"r = f(  # a < b\n    c <= d\n)\n"}),
    ],
)
def test_every_operator_changes_its_statements(text: str, expected: set[str]) -> None:
    assert changed_texts(text) >= expected
    assert all(each != text for each in changed_texts(text))


def test_only_the_listed_operands_of_a_condition_are_replaced() -> None:
    assert changed_texts("r = a and b\n") == {"r = a or b\n", "r = True and b\n", "r = a and True\n"}


def test_an_argument_with_a_default_is_left_out() -> None:
    texts = changed_texts("def f(a, b=c, *, d=e, g):\n    return a\n\n\nr = f(a=h, b=i, d=j, g=k)\n")
    assert {text.splitlines()[-1] for text in texts} == {"r = f(a=h, d=j, g=k)", "r = f(a=h, b=i, g=k)"}


def test_the_first_argument_is_left_out_with_its_comma() -> None:
    assert changed_texts("def f(a=b, c=d):\n    return a\n\n\nr = f(a=h,\n  c=i)\n") == {
        "def f(a=b, c=d):\n    return a\n\n\nr = f(c=i)\n",
        "def f(a=b, c=d):\n    return a\n\n\nr = f(a=h)\n",
    }


@pytest.mark.parametrize(
    "text",
    [
        '"""1 < 2"""\n',
        "def f(a: 1 + 2) -> 3:\n    return a\n",
        "a: 1 | 2\n",
        "A = int | str\n",
        "raise ValueError(1 + 2, not a)\n",
        "rank_zero_warn(1 + 2)\n",
        "r = f'{1 + 2}'\n",
        "r = folder / 'a'\n",
        "r = isinstance(a, int | str)\n",
        "from a import b\n",
        "@f(1)\ndef g():\n    return a\n",
        "class A:\n    def __repr__(self):\n        return a + b\n",
        "class A:\n    def __init__(self, a):\n        self.a = a\n",
        "class A:\n    def __init__(self):\n        super().__init__()\n",
        "if TYPE_CHECKING:\n    a = 1\n",
    ],
)
def test_annotations_docstrings_and_messages_are_not_changed(text: str) -> None:
    assert changed_texts(text) == set()


def test_function_at_uses_decorators_and_nesting() -> None:
    source = Source(
        "class A:\n    a = 1\n\n    @b\n    def c(self):\n        def d():\n            pass\n        d()\n"
    )
    assert [source.function_at(line) for line in range(1, 9)] == ["", "", "", "A.c", "A.c", "A.c.d", "A.c.d", "A.c"]
