"""What a round needs of links and memory: as much as its messages have, said before the first round."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

from lightning import Trainer

from hetfl import FederatedModule
from hetfl.compression import ErrorFeedback, GammaFedHT, Identity
from hetfl.flower import limits
from hetfl.flower.clients import FlowerClients
from hetfl.flower.command.processes import environment
from hetfl.flower.limits import Needs, available_memory, node_memory, report_memory
from hetfl.flower.messages import read_answer, read_request
from hetfl.flower.nodes import Nodes
from hetfl.flower.patience import Patience
from hetfl.flower.register import Register
from tests.conftest import small_module
from tests.flower_cases import Clock, FakePost, make_node
from tests.lora_cases import adapted, ranks

HEADER = 100
"""The most bytes of a message beside its values."""
CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "dense": lambda: {"uplink": ErrorFeedback(Identity())},
    "dense, half precision": lambda: {"uplink": ErrorFeedback(Identity(), half_precision=True)},
    "sparse": lambda: {"uplink": ErrorFeedback(GammaFedHT(density=0.1))},
    "preinstalled base": lambda: {
        "net": adapted(),
        "levels": ranks(4, 2, 1),
        "base": "preinstalled",
        "uplink": ErrorFeedback(Identity()),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_needs_are_those_of_the_messages_of_the_first_round(
    fit: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Models count once for all clients that get them, updates once per client; a sparse update is smaller."""

    def make() -> FederatedModule:
        return small_module(**CASES[case]())

    def noted(*given: Any) -> Needs:
        found.append(of(*given))
        return found[-1]

    events: list[tuple[str, str]] = []
    found: list[Needs] = []
    of = Needs.of
    monkeypatch.setattr(Needs, "of", staticmethod(noted))
    module, clock, post = make(), Clock(), FakePost({1: make_node(range(12), tmp_path / "node", make)})
    register = Register(lambda kind, text, *_, **__: events.append((kind, text)))
    module.clients = FlowerClients(module, Nodes(post, clock, clock.sleep, register), Patience())
    fit(module, rounds=2)
    (needs,) = found
    request = next(each for _, records in post.sent if (each := read_request(records)).job == "train")
    models = {order.model for order in request.orders}
    clients = [order.task.client for order in request.orders]
    answer = next(records for _, records in post.answered if "bytes.0" in records)
    updates = [len(report.payload) for report in read_answer(answer, request.nonce, clients).reports]
    assert needs.clients == len(clients)
    assert 0 <= sum(map(len, models)) - needs.models <= HEADER * len(models)
    assert 0 <= max(map(len, models)) - needs.largest <= HEADER
    assert sum(updates) <= needs.updates + HEADER * len(updates)
    assert case == "sparse" or needs.updates <= sum(updates)
    assert max(updates) <= needs.largest_update + HEADER
    kinds = [kind for kind, _ in events]
    assert kinds.count("needs") == 1
    assert kinds.index("needs") < kinds.index("joined")


def test_needs_are_said_in_numbers() -> None:
    needs = Needs(
        3, models=124 * 10**6, largest=12 * 10**7, updates=244 * 10**6, largest_update=60 * 10**6, global_models=10**6
    )
    copies = (limits.MODEL_COPIES, limits.UPDATE_COPIES, limits.GLOBAL_COPIES)
    assert needs.memory == 10**6 * (124 * copies[0] + 244 * copies[1] + copies[2])
    assert re.match(
        r"3 clients; models of 124 MB in all, up to 120 MB for a client; updates of up to 244 MB in all, up to 60 MB "
        r"of a client; .* link needs at least 300 kB/s",
        needs.describe(600.0),
    )
    small = Needs(1, models=10**4, largest=10**4, updates=3 * 10**4, largest_update=3 * 10**4, global_models=10**4)
    assert "1 client; models of 0.01 MB" in small.describe(600.0)
    assert "needs at least 1 kB/s" in small.describe(600.0), "30 kB, as one piece, within 30 s"
    assert "needs at least 35 kB/s" in needs.describe(3600.0 * 24), "two pieces at once within 30 s each"


def test_a_machine_with_less_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, str, str]] = []
    there = available_memory()
    assert there is None or there > 2**20
    monkeypatch.setattr(limits, "available_memory", lambda: 3 * 10**9)
    for needed in (3 * 10**9, 4 * 10**9):
        report_memory(lambda kind, text, node: events.append((kind, text, node)), needed, "one")
    assert events == [("memory", "3,000 MB are available here, but up to 4,000 MB may be needed", "one")]


def test_a_node_needs_no_memory_for_a_preinstalled_base(tmp_path: Path) -> None:
    def make() -> FederatedModule:
        return small_module(**CASES["preinstalled base"]())

    module = make_node([0], tmp_path, make).module
    trained = module.models.unfrozen(module.levels.indices["a"]).size
    first, further = node_memory(module)
    assert further == 4 * limits.ANSWER_COPIES * trained
    assert first - further == 4 * (limits.RECEIVED_COPIES + limits.TRAINED_COPIES) * trained


def test_a_node_keeps_no_state_in_memory(fit: Callable[..., Trainer], tmp_path: Path) -> None:
    """Each residual takes as much memory as a model, and the node has it on its disk."""
    node = make_node(range(12), tmp_path / "node", lambda: small_module(**CASES["sparse"]()))
    module, clock = small_module(**CASES["sparse"]()), Clock()
    module.clients = FlowerClients(module, Nodes(FakePost({1: node}), clock, clock.sleep), Patience())
    fit(module, rounds=2)
    assert not node.module.uplink.residuals.clients()
    assert list((tmp_path / "node").glob("*/client-*"))


def test_arrays_travel_in_pieces_that_pass_a_slow_link_in_time(tmp_path: Path) -> None:
    """Flower's processes read the size of pieces from the environment when they import it."""
    code = "from flwr.app import Array; print(*(c.data.nbytes for _, c in Array('uint8', (1,), '', b'a' * (5 << 18))"
    code += ".slice_array()))"
    pieces = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), check=True, capture_output=True, text=True
    ).stdout
    assert pieces.split() == [str(1 << 19)] * 2 + [str(1 << 18)]
