"""Text from elsewhere as one printable line: a node's reasons, names of files and folders, labels, names of classes."""

from __future__ import annotations

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
