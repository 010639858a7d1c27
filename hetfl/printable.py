"""Text from elsewhere as one printable line: a node's reasons, names of files and folders, labels, names of classes."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 300
"""Characters of a line, if nothing else is asked for."""
CUT = "..."
"""What a line ends with that was cut."""


def printable(text: object, longest: int = LONGEST) -> str:
    r"""Return a text as one line that shows what it is and does nothing else.

    A character that is not printable is written as its escape: line ends, control characters, the escape that begins a
    terminal's commands, marks that turn the direction of writing, and single surrogates. Printable characters of all
    scripts stay, and so does the backslash, as paths of Windows have many.

    Args:
        text: anything; its ``str`` is taken.
        longest: characters of the line at the most.

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
    """Return a client's number and, where the data has another name for it, that name.

    Args:
        client: the number.
        names: what the user calls each client; None: as its number.

    >>> called(1, ["ann", "bob"]), called(1, None), called(1, [0, 1])
    ("1 ('bob')", '1', '1')
    """
    known = names is not None and client < len(names) and names[client] != client
    return f"{client} ({printable(repr(names[client]))})" if names is not None and known else str(client)
