"""A client's blocks as a file with a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.files import write_whole

FILES = "client-*-round-*"
"""Pattern of the files' names; it also matches incomplete files of a killed run."""
DIGEST = "blake2b"
"""Key of the digest of a file's blocks in its metadata."""
DIGEST_BYTES = 32


def file_name(client: int, round: int) -> str:
    """Return the name of the file of a client's blocks as of a round."""
    return f"client-{client}-round-{round}.safetensors"


def write_blocks(path: Path, blocks: Mapping[str, Tensor]) -> str:
    """Write a file atomically; return the digest of its blocks.

    Raises:
        OSError: the file cannot be written.
    """
    digest = digest_of(blocks)
    write_whole(path, safetensors.torch.save(dict(blocks), {DIGEST: digest}))
    return digest


def read_blocks(path: Path, expected: str | None = None) -> dict[str, Tensor]:
    """Return the blocks of a file.

    Args:
        path: the file.
        expected: the digest of the blocks that were written there; None: any blocks that match the file's own digest.

    Raises:
        ConfigurationError: the file is damaged, or has other blocks than those that were written.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            blocks = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            digest = (file.metadata() or {}).get(DIGEST)
    except safetensors.SafetensorError:
        digest = None
    if digest is None or digest != digest_of(blocks):
        raise ConfigurationError(f"Expected {path} as it was written but got a damaged file")
    if expected is not None and digest != expected:
        raise ConfigurationError(
            f"Expected the last written file in {path} but got a file of another client, round or run"
        )
    return blocks


def digest_of(blocks: Mapping[str, Tensor]) -> str:
    """Return a digest of blocks: their names, dtypes, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name in sorted(blocks):
        digest.update(f"{name} {blocks[name].dtype} {tuple(blocks[name].shape)} ".encode())
        digest.update(blocks[name].contiguous().numpy().data)
    return digest.hexdigest()
