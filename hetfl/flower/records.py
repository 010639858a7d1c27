"""Records of Flower: plain values and bytes, whose types are checked as they are read."""

from __future__ import annotations

from typing import TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from hetfl.printable import printable

STYPE = "hetfl.wire"
"""What Flower is told that our bytes are; it carries them as they are."""
VALUES = "values"
T = TypeVar("T")


class MalformedMessage(ValueError):
    """A message that is not what it should be; its text may quote what came."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def bytes_record(data: bytes) -> ArrayRecord:
    """Return bytes as a record."""
    return ArrayRecord({VALUES: Array("uint8", (len(data),), STYPE, data)})


def bytes_of(records: RecordDict, name: str) -> bytes:
    """Return the bytes in a record.

    Raises:
        MalformedMessage: there is none.
    """
    record = records.get(name)
    if not isinstance(record, ArrayRecord) or list(record) != [VALUES] or record[VALUES].stype != STYPE:
        raise MalformedMessage(f"Expected bytes of {STYPE} in record {name} but got something else")
    return bytes(record[VALUES].data)


def config_of(records: RecordDict, name: str) -> ConfigRecord:
    """Return a record of plain values.

    Raises:
        MalformedMessage: there is none.
    """
    record = records.get(name)
    if not isinstance(record, ConfigRecord):
        raise MalformedMessage(f"Expected record {name} but got {sorted(records)[:10]}")
    return record


def value_of(record: ConfigRecord, name: str, kind: type[T]) -> T:
    """Return a value of a record whose type is the expected one.

    Raises:
        MalformedMessage: there is none.
    """
    value = record.get(name)
    if type(value) is not kind:
        raise MalformedMessage(f"Expected {name} to be {kind.__name__} but got {type(value).__name__}")
    return value
