"""Small texts that become very large when they are parsed."""

from __future__ import annotations

ALIASES = "".join(f"a{n}: &a{n} [{', '.join(['x' if n == 0 else f'*a{n - 1}'] * 10)}]\n" for n in range(9))
"""Nine levels of ten aliases each: a billion values."""
CHAIN = "".join(f"a{n}: &a{n} [{'x' if n == 0 else f'*a{n - 1}'}]\n" for n in range(3000))
"""Lists nested through aliases; the text itself has no nested lists."""
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 9)
)  # fmt: skip
"""Nine levels of ten aliases through YAML's merge key."""

DEEP = "at most 100 lists and mappings inside each other"
MANY = "at most 100,000 values, aliases written out,"

YAML = {
    "aliases": (ALIASES, MANY),
    "a chain of aliases": (CHAIN, DEEP),
    "merged mappings": (MERGED, MANY),
    "lists": ("a: " + "[" * 3000 + "]" * 3000, DEEP),
    "lists without an end": ("a: " + "[" * 100_000, DEEP),
    "mappings": ("a: " + "{a: " * 3000 + "1" + "}" * 3000, DEEP),
    "block style": ("- " * 3000 + "1", DEEP),
    "keys": ("? " * 3000 + "1", DEEP),
    "an alias of what it stands in": ("a: &a [1, *a]", "settings with an end"),
    "many values": ("a: [" + "1, " * 100_001 + "]", MANY),
    "a long text": ("a: " + "x" * 2_000_001, "at most 2,000,000"),
    "a text that is read again": ("a: '" + "[" * 3000 + "]" * 3000 + "'", DEEP),
    "aliases in a text": (f"a: {('{' + ALIASES.replace(chr(10), ', ') + '}')!r}", MANY),
}
"""YAML texts by name, each with the expected words of its error."""

JSON = {
    "lists": ("[" * 3000 + "]" * 3000, DEEP),
    "lists without an end": ("[" * 100_000, DEEP),
    "mappings": ('{"a":' * 200 + "1" + "}" * 200, DEEP),
    "digits": ("9" * 5000, "Exceeds the limit"),
    "no JSON": ("{", "Expecting property name"),
}
"""JSON texts by name, each with the expected words of its error."""
