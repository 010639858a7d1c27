"""Imports without the garbage collector."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from hetfl.importing import earlier_objects_frozen, imported

pytestmark = pytest.mark.usefixtures("_frozen_again")


def test_a_new_module_is_imported_without_collections_and_its_objects_stay_out_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.joinpath("of_this_test.py").write_text(
        "import gc\ncollecting = gc.isenabled()\nlists = [[] for _ in 'abc']\n"
    )
    tmp_path.joinpath("broken_test_module.py").write_text("raise ValueError('broken')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        module = imported("of_this_test")
        assert not module.collecting
        assert gc.isenabled()
        assert not any(each is module.lists for each in gc.get_objects())
        gc.unfreeze()
        assert any(each is module.lists for each in gc.get_objects())
        assert imported("of_this_test") is module
        assert any(each is module.lists for each in gc.get_objects()), "a known module freezes nothing"
        with pytest.raises(ValueError, match="broken"):
            imported("broken_test_module")
        assert gc.isenabled()
    finally:
        gc.unfreeze()
        sys.modules.pop("of_this_test", None)


def test_earlier_objects_are_frozen_for_a_while() -> None:
    gc.unfreeze()
    earlier: list[list[int]] = [[]]
    with earlier_objects_frozen():
        later: list[list[int]] = [[]]
        assert not any(each is earlier for each in gc.get_objects())
        assert any(each is later for each in gc.get_objects())
    assert gc.get_freeze_count() == 0


def test_what_a_process_has_frozen_stays_frozen_and_nothing_is_added() -> None:
    gc.freeze()
    before = gc.get_freeze_count()
    earlier: list[list[int]] = [[]]
    with earlier_objects_frozen():
        assert any(each is earlier for each in gc.get_objects())
    assert gc.get_freeze_count() == pytest.approx(before, abs=100)
    assert before > 1000
