"""The wire format of ``docs/wire.md`` in plain loops over ints; it shares no code with hetfl.wire."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence

import torch

from hetfl.codes import Codes
from hetfl.updates import DenseUpdate, LowRankUpdate, SeededUpdate, SparseUpdate, Update

HEADER = 56
FLOATS = {torch.float16: ("e", 0), torch.float32: ("f", 1), torch.float64: ("d", 2)}
MASK = 2**64 - 1


def bytes_of(bits: Sequence[int]) -> bytes:
    """Return bits as bytes, lowest bit first, padded with zeros."""
    out = bytearray((len(bits) + 7) // 8)
    for place, bit in enumerate(bits):
        out[place // 8] |= bit << place % 8
    return bytes(out)


def word_bits(numbers: Sequence[int], width: int) -> list[int]:
    return [number >> bit & 1 for number in numbers for bit in range(width)]


def rice_with(numbers: Sequence[int], parameter: int) -> bytes:
    bits = word_bits(numbers, parameter)
    for number in numbers:
        bits += [0] * (number >> parameter) + [1]
    return bytes([parameter]) + bytes_of(bits)


def best_parameter(numbers: Sequence[int]) -> int:
    """Return the smallest parameter with the fewest bits, by trying all parameters."""
    highest = max(numbers, default=0).bit_length()
    return min(range(highest + 1), key=lambda p: sum(p + 1 + (number >> p) for number in numbers))


def rice(numbers: Sequence[int]) -> bytes:
    return rice_with(numbers, best_parameter(numbers))


def read_rice(stream: bytes, count: int, most: int) -> list[int] | None:
    """Read bit by bit; return None where a receiver must refuse."""
    if not stream or stream[0] > most.bit_length() or count << stream[0] > 2**62:
        return None
    width = stream[0]
    bits = [byte >> place & 1 for byte in stream[1:] for place in range(8)]
    quotients, place = [], count * width
    for _ in range(count):
        if 1 not in bits[place:]:
            return None
        ones = bits.index(1, place)
        quotients.append(ones - place)
        place = ones + 1
    if len(bits) - place >= 8 or any(bits[place:]):
        return None
    low = [sum(bits[number * width + bit] << bit for bit in range(width)) for number in range(count)]
    numbers = [quotient << width | rest for quotient, rest in zip(quotients, low, strict=True)]
    return numbers if sum(numbers) <= most else None


def runs_of(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Return pairs of start and length."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and sum(runs[-1]) == index:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    return runs


def as_gaps(indices: Sequence[int]) -> bytes:
    return rice([index - before - 1 for before, index in zip([-1, *indices], indices, strict=False)])


def as_runs(indices: Sequence[int]) -> bytes:
    between, end = [], -1  # as if a run ended before the vector, with one entry left out after it
    for start, length in runs_of(indices):
        between.append(start - end - 1)
        end = start + length
    first = rice(between)
    second = rice([length - 1 for _, length in runs_of(indices)])
    return bytes([255]) + struct.pack("<QQ", len(between), len(first)) + first + second


def index_block(indices: Sequence[int]) -> bytes:
    """Return runs if they are shorter and at most half as many as the indices; else gaps."""
    gaps, runs = as_gaps(indices), as_runs(indices)
    return runs if len(runs) < len(gaps) and 2 * len(runs_of(indices)) <= len(indices) else gaps


def mix(word: int) -> int:
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK
    return word ^ word >> 31


def permuted(position: int, size: int, seed: int) -> int:
    half: int = 1
    while 4**half < size:
        half += 1
    word: int = position
    while True:
        left, right = word >> half, word % 2**half
        for number in range(8):
            key = seed + 0x9E3779B97F4A7C15 * (number + 1) & MASK
            left, right = right, left ^ mix(right + key & MASK) % 2**half
        word = left << half | right
        if word < size:
            return word


def chosen(size: int, count: int, seed: int) -> list[int]:
    return sorted(permuted(position, size, seed) for position in range(count))


def code_values(codes: Codes) -> list[float]:
    """Return s (q − z) or ±z s^j per code, computed in float64, the type of a Python float, and rounded to float32."""
    values, start = [], 0
    for bucket, size in enumerate(codes.sizes.tolist()):
        scale, zero = codes.scales[bucket].item(), codes.zeros[bucket if len(codes.zeros) > 1 else 0].item()
        for code in codes.codes[start : start + size].tolist():
            exact = (code - zero) * scale if codes.spacing == "affine" else logarithmic(code, codes.bits, zero, scale)
            values.append(struct.unpack("<f", struct.pack("<f", exact))[0] if abs(exact) < 3.4e38 else math.inf)
        start += size
    return values


def logarithmic(code: int, bits: int, least: float, ratio: float) -> float:
    sign, steps = divmod(code, 2 ** (bits - 1))
    magnitude = least
    for _ in range(steps):
        magnitude *= ratio
    return -magnitude if sign else magnitude


def code_block(codes: Codes) -> bytes:
    zeros, scales = codes.zeros.tolist(), codes.scales.tolist()
    flags = int(len(zeros) > 1 or (not zeros and not scales))
    head = struct.pack("<BBHI", codes.bits, flags, int(codes.spacing == "logarithmic"), codes.bucket)
    floats = struct.pack(f"<{len(zeros) + len(scales)}f", *zeros, *scales)
    return head + floats + bytes_of(word_bits(codes.codes.tolist(), codes.bits))


def support(update: Update) -> tuple[int, bytes]:
    if isinstance(update, SeededUpdate):
        return 2, struct.pack(f"<{1 + len(update.counts)}Q", update.seed, *update.counts)
    if isinstance(update, SparseUpdate):
        return 1, index_block(update.indices.tolist())
    if isinstance(update, LowRankUpdate):
        return 3, struct.pack(f"<{len(update.ranks)}H", *update.ranks)
    assert isinstance(update, DenseUpdate)
    return 0, b""


def message(update: Update, round: int, client: int, half: bool = False) -> bytes:
    kind, block = support(update)
    letter, code = FLOATS[torch.float16 if half else update.values.dtype]
    exact_letter, exact_code = FLOATS[update.exact.dtype if len(update.exact) else torch.float32]
    values, exact = update.values.tolist(), update.exact.tolist()
    if update.codes is not None:
        code, body = 3, code_block(update.codes)
    else:
        body = struct.pack(f"<{len(values)}{letter}", *values)
    body = block + body + struct.pack(f"<{len(exact)}{exact_letter}", *exact)
    head = b"HTFL" + bytes([2, kind, code, exact_code]) + struct.pack("<IQ", round, client)
    head += struct.pack("<QQQQ", update.size, len(values), len(exact), len(block))
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


def mended(data: bytes) -> bytes:
    """Return the same bytes with a correct checksum."""
    return data[:52] + struct.pack("<I", zlib.crc32(data[:52] + data[56:])) + data[56:]
