"""Plays a reference run to its end, and compares it with the files and values of a real run."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from hetfl.store import ClientStore
from tests.reference.columns import UNKNOWN, column, is_single
from tests.reference.evaluation import Evaluation
from tests.reference.federation import Federation
from tests.reference.layers import Tensors
from tests.reference.rules import is_buffer

Row = dict[str, float]


def play(federation: Federation, rounds: int, first: int = 0, evaluated: bool = True) -> tuple[list[Row], Evaluation]:
    """Return the rows of ``metrics.csv`` under the reference's names, and the evaluation after the last round."""
    rows, evaluation = [], Evaluation(federation)
    for t in range(first, rounds):
        row = federation.round(t)
        if evaluated:
            row |= evaluation.validation(t)
        rows.append({**row, **_costs(federation), "residual": _norm(federation)})
    return rows, evaluation


def _norm(federation: Federation) -> float:
    squares = [(value**2).sum() for each in federation.residuals.values() for value in each.values()]
    return float(np.sqrt(sum(squares)))


def _costs(federation: Federation) -> Row:
    ledger = federation.ledger
    row, total = ledger.row, ledger.total
    return {
        **{f"down_{purpose}": float(row[f"down_{purpose}"]) for purpose in ("training", "statistics", "probes")},
        **{name: float(row[name]) for name in ("up", "down", "refused", "waited", "reachable", "dropped", "failed")},
        "up_total": total["up"],
        "down_total": total["down"],
        "density": row["sent"] / row["entries"] if row["entries"] else 0.0,
        "ratio": row["dense"] / row["up"] if row["up"] else 0.0,
        "ratio_total": total["dense"] / total["up"] if total["up"] else 0.0,
        "flops_total": total["flops"],
        "round_seconds": ledger.now - ledger.began,
        "seconds_total": ledger.now,
        "lost_total": total["lost"],
    }


def read(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def check_rows(folder: str | None, expected: Sequence[Row]) -> None:
    """Check that ``metrics.csv`` has exactly the expected columns and values."""
    rows = read(Path(str(folder)) / "metrics.csv")
    assert len(rows) == len(expected)
    for t, (row, expected_row) in enumerate(zip(rows, expected, strict=True)):
        filled = {name for name, cell in row.items() if cell != ""} - UNKNOWN
        assert filled == {column(name) for name in expected_row}, f"round {t}"
        for name, value in expected_row.items():
            rtol = 1e-6 if is_single(name) else 1e-9
            np.testing.assert_allclose(
                float(row[column(name)]), value, rtol=rtol, atol=1e-12, err_msg=f"round {t}, {column(name)}"
            )


def check_values(net: nn.Module, expected: Tensors) -> None:
    """Check that a net of the run has the expected tensors."""
    state = {name: value for name, value in net.state_dict().items() if value.is_floating_point()}
    assert state.keys() == expected.keys()
    for name, value in state.items():
        np.testing.assert_allclose(value.cpu().numpy(), expected[name], rtol=1e-9, atol=1e-11, err_msg=name)


def check_store(store: ClientStore, expected: Mapping[int, Tensors]) -> None:
    """Check that a store of residuals or memories has the expected vectors, in global coordinates."""
    assert store.clients(), "the store is empty"
    for client, tensors in expected.items():
        blocks = store.load(client)
        for name in (name for name in tensors if not is_buffer(name)):
            stored = np.zeros_like(tensors[name])
            if name in blocks:
                block: Tensor = blocks[name]
                stored[tuple(slice(size) for size in block.shape)] = block.numpy()
            np.testing.assert_allclose(stored, tensors[name], rtol=1e-9, atol=1e-12, err_msg=f"client {client}, {name}")


def check_clients(folder: str | None, evaluation: Evaluation, last: int) -> None:
    """Check that ``clients.csv`` has the reference's values for every client."""
    rows, federation = read(Path(str(folder)) / "clients.csv"), evaluation.federation
    whole, with_submodel = evaluation.clients(last), evaluation.clients(last, submodels=True)
    assert len(rows) == len(federation.given.clients)
    for k, (row, client) in enumerate(zip(rows, federation.given.clients, strict=True)):
        assert row["client"] == str(k)
        assert row["level"] == federation.given.level(k, last)
        assert (row["train_samples"], row["test_samples"]) == (str(len(client.train)), str(len(client.test)))
        for cell, value in ((row["accuracy"], whole[k]), (row["own_accuracy"], with_submodel[k])):
            assert (cell == "") == (value is None)
            if value is not None:
                np.testing.assert_allclose(float(cell), value, rtol=1e-9)
        if federation.rules.clusters > 1:
            assert row["cluster"] == str(federation.clusters.assigned[k])
