"""Flower records of plain values and of bytes; reading checks the types."""

from __future__ import annotations

from typing import TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from hetfl.printable import printable
from hetfl.reading import LARGEST_TEXT, parse_json

STYPE = "hetfl.wire"
"""Type of our bytes in Flower's records; Flower does not interpret it."""
VALUES = "values"
T = TypeVar("T")


class MalformedMessage(ValueError):
    """A message that does not have the expected form; the error's text may quote it."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def bytes_record(data: bytes) -> ArrayRecord:
    """Return bytes as a record."""
    return ArrayRecord({VALUES: Array("uint8", (len(data),), STYPE, data)})


def bytes_of(records: RecordDict, name: str) -> bytes:
    """Return the bytes in a record.

    Raises:
        MalformedMessage: there is no such record of bytes.
    """
    record = records.get(name)
    if not isinstance(record, ArrayRecord) or list(record) != [VALUES] or record[VALUES].stype != STYPE:
        raise MalformedMessage(f"Expected bytes of {STYPE} in record {name} but got something else")
    return bytes(record[VALUES].data)


def config_of(records: RecordDict, name: str) -> ConfigRecord:
    """Return a record of plain values.

    Raises:
        MalformedMessage: there is no such record.
    """
    record = records.get(name)
    if not isinstance(record, ConfigRecord):
        raise MalformedMessage(f"Expected record {name} but got {sorted(records)[:10]}")
    return record


def value_of(record: ConfigRecord, name: str, kind: type[T]) -> T:
    """Return a value of a record, whose type is checked.

    Raises:
        MalformedMessage: the value is missing, or has another type.
    """
    value = record.get(name)
    if type(value) is not kind:
        raise MalformedMessage(f"Expected {name} to be {kind.__name__} but got {type(value).__name__}")
    return value


def texts_of(record: ConfigRecord, name: str) -> dict[str, str]:
    """Return texts by name, which are JSON in one value of a record.

    Raises:
        MalformedMessage: the value is something else.
    """
    try:
        texts = parse_json(value_of(record, name, str), LARGEST_TEXT)
    except MalformedMessage:
        raise
    except ValueError as error:
        raise MalformedMessage(f"Expected {name} in JSON but got: {error}") from error
    if not isinstance(texts, dict) or not all(isinstance(value, str) for value in texts.values()):
        raise MalformedMessage(f"Expected {name}, texts by name, but got other JSON")
    return texts


def numbers_of(record: ConfigRecord, names_key: str, values_key: str) -> dict[str, float]:
    """Return numbers by name, which are two lists in a record.

    Raises:
        MalformedMessage: the lists do not fit together, or have something else.
    """
    names, values = value_of(record, names_key, list), value_of(record, values_key, list)
    if not all(type(name) is str for name in names) or not len(set(names)) == len(names) == len(values):
        raise MalformedMessage(f"Expected {names_key}, one number per name, but got something else")
    if not all(type(value) is float for value in values):
        raise MalformedMessage(f"Expected numbers for {names_key} but got something else")
    return dict(zip(names, values, strict=True))
