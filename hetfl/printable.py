"""Makes one printable line of any text: of a node's reasons, names of files and folders, labels, names of classes."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 300
"""Default for the largest number of characters in a line."""
CUT = "..."
"""End of a line that was cut."""


def printable(text: object, longest: int = LONGEST) -> str:
    r"""Return a text as one line of printable characters.

    Characters that are not printable are written as escapes: line ends, control characters, terminal commands, marks
    of the writing direction, and single surrogates. Printable characters of all scripts stay, and so do backslashes,
    which are frequent in paths of Windows.

    Args:
        text: any object; its ``str`` is used.
        longest: largest number of characters in the line.

    >>> printable("no data\nround 7: accuracy 1.0\x1b[2J")
    'no data\\nround 7: accuracy 1.0\\x1b[2J'
    """
    given = str(text)
    line = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in given[: longest + 1]
    )
    return line if len(line) <= longest else line[: longest - len(CUT)] + CUT


def called(client: int, names: Sequence[str | int] | None) -> str:
    """Return a client's id and, if the data has another name for it, the name.

    Args:
        client: the id.
        names: the user's name of each client; None: clients have no names.

    >>> called(1, ["ann", "bob"]), called(1, None), called(1, [0, 1])
    ("1 ('bob')", '1', '1')
    """
    known = names is not None and client < len(names) and names[client] != client
    return f"{client} ({printable(repr(names[client]))})" if names is not None and known else str(client)
