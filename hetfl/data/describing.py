"""A data set and its partition in one line."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from hetfl.data.resident import Resident
from hetfl.data.split import Split
from hetfl.data.usable import some
from hetfl.objectives import Objective
from hetfl.printable import called


def in_one_line(
    name: str, objective: Objective, resident: Resident, client_names: Sequence[str | int] | None, transform: object
) -> str:
    """Return one line: the data set, its partition, and clients without test samples or with one class.

    Args:
        name: of the data set.
        objective: what the targets are.
        resident: the data set after its split.
        client_names: the ids of the clients in the data; None: it has none.
        transform: changes the samples of each client; None: nothing does.
    """
    num_classes, sizes = resident.labels.shape[1], [len(data) for data in resident.train]
    untested = [client for client, data in enumerate(resident.test) if not len(data)]
    single = (resident.labels.sum(dim=1) == 1).nonzero().flatten().tolist() if num_classes > 1 else []
    special = "".join(
        f", {fact}: {some('client', [called(client, client_names) for client in clients], most=3)}"
        for fact, clients in (("without test samples", untested), ("of one class", single))
        if clients
    )
    unassigned = f", {resident.unassigned} at no client" if resident.unassigned else ""
    at_server = f", {len(resident.server)} at the server" if len(resident.server) else ""
    own = sum(len(data) for data in resident.held_out)
    own_text = f", {own} held out by clients" if own else ""
    changed = "" if transform is None else f", changed by {type(transform).__name__}"
    return (
        f"{name}: {objective.noun(num_classes)}, {sum(sizes)} training samples on {len(sizes)} clients "
        f"(smallest {min(sizes)}, median {median(sizes):g}, largest {max(sizes)}){unassigned}{at_server}{own_text}, "
        f"{len(resident.validation)} held out, {len(resident.all_test)} test{changed}{special}"
    )


def report_strays(name: str, split: Split, min_samples: int) -> None:
    """Warn of clients that are left out, and log how many samples belong to no client.

    Args:
        name: of the data set.
        split: of the data set.
        min_samples: smallest number of training samples of a client.
    """
    if split.dropped:
        clients = some("client", [repr(client) for client in split.dropped])
        rank_zero_warn(
            f"{name}: {clients} of {len(split.dropped) + len(split.train)} with fewer than {min_samples} training "
            "samples (min_samples) are left out"
        )
    if split.unassigned:
        rank_zero_info(f"{name}: {split.unassigned} training samples belong to no client")
