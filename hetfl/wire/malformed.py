"""The one exception that bytes from a client can cause."""

from __future__ import annotations

from enum import StrEnum

from hetfl.printable import printable


class Reason(StrEnum):
    """Why a payload was refused."""

    LENGTH = "length"
    FORMAT = "format"
    DTYPE = "dtype"
    ROUND = "round"
    CLIENT = "client"
    SIZE = "size"
    COUNT = "count"
    CHECKSUM = "checksum"
    INDICES = "indices"
    VALUES = "values"


class MalformedPayload(ValueError):
    """A payload that is not what the server expects.

    Attributes:
        reason: which check refused it.
        detail: what was expected and what came, on one line.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason, self.detail = reason, printable(detail)
        super().__init__(f"{reason}: {self.detail}")
