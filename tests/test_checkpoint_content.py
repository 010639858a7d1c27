"""A checkpoint holds no more than its bytes: what grows when it is read is refused in one line."""

from __future__ import annotations

import copy
import io
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hetfl import ConfigurationError
from hetfl.runs.checkpoint import SafeCheckpointIO, SealedFile
from hetfl.runs.content import check_content


class Enlarged:
    """A tensor of 100 million entries whose memory, as written, is one of them."""

    def __reduce__(self) -> Any:
        memory = torch.zeros(1)._typed_storage()
        return torch._utils._rebuild_tensor_v2, (memory, 0, (10**8,), (1,), False, OrderedDict())


def nested(times: int) -> list[Any]:
    """Return lists that hold each other: 10 to the power of so many values, written out."""
    values: list[Any] = [0] * 10
    for _ in range(times - 1):
        values = [values] * 10
    return values


def compressed(archive: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as read, zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as file:
        for name in read.namelist():
            file.writestr(name, read.read(name))
    return written.getvalue()


def overlapping(archive: bytes) -> bytes:
    """Return the same archive with a thousand names for its longest record."""
    written = io.BytesIO(archive)
    with zipfile.ZipFile(written, "a") as file:
        for number in range(1000):
            record = copy.copy(max(file.filelist[:10], key=lambda each: each.file_size))
            record.filename = f"archive/data/{number + 10}"
            file.filelist.append(record)
            vars(file)["_didModify"] = True
    return written.getvalue()


def same(archive: bytes) -> bytes:
    return archive


CONTENTS: dict[str, tuple[Any, Callable[[bytes], bytes], str]] = {
    "one value that is a terabyte": (
        torch.zeros(1).expand(1 << 38),
        same,
        r"content of at most [\d,]+ bytes, written out,",
    ),
    "more entries than memory": (Enlarged(), same, "a checkpoint of plain values and tensors"),
    "lists of lists": (nested(12), same, r"content of at most [\d,]+ bytes, written out,"),
    "zeros, compressed": (torch.zeros(10**6), compressed, "records that are not compressed"),
    "one record, a thousand times": (torch.zeros(10**4), overlapping, r"records of at most [\d,]+ bytes"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_what_grows_is_refused(case: str, tmp_path: Path) -> None:
    content, change, expected = CONTENTS[case]
    archive, path = io.BytesIO(), tmp_path / "last.ckpt"
    torch.save({"state_dict": {"weight": content}}, archive)
    with path.open("wb") as file:
        sealed = SealedFile(file)
        sealed.write(memoryview(change(archive.getvalue())))
        sealed.seal()
    with pytest.raises(ConfigurationError, match=f"^Expected {expected} .*last.ckpt") as caught:
        SafeCheckpointIO().load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_tensors_may_share_memory_and_lists_may_be_shared() -> None:
    """Views of one vector, and the same state under several names, are what a run writes."""
    vector = torch.zeros(1 << 18)
    rounds = list(range(1000))
    check_content({"views": vector.split(1 << 16), "again": [vector] * 4, "rounds": [rounds] * 20}, vector.nbytes)


def test_tensors_have_no_more_memory_than_the_file_has_bytes() -> None:
    """A view is counted by its entries, but its memory has been made as a whole."""
    with pytest.raises(ValueError, match=r"^Expected tensors of at most 1,000 bytes but got 4,000,000$"):
        check_content([torch.zeros(10**6)[:3]], 1000)
