"""Lightning callbacks that follow a round from inside."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Callback, LightningModule, Trainer

from hetfl.federation.server import Accepted
from hetfl.layout import Index
from hetfl.types import Report
from hetfl.updates import Update


class FederatedCallback(Callback):
    """A Lightning callback with hooks for what happens inside a round."""

    def on_client_end(self, trainer: Trainer, module: LightningModule, done: int, total: int) -> None:
        """Follow a client's local training; called in the main process.

        Args:
            trainer: the trainer.
            module: the federated module.
            done: number of clients of this round that have finished, this one included.
            total: number of clients in this round.
        """

    def on_update(
        self, trainer: Trainer, module: LightningModule, update: Update, index: Index, report: Report
    ) -> None:
        """Follow an update that the server accepted; called in the main process, in the order of the cohort.

        The client's ``on_client_end`` comes after it. Take what is needed from an update and let it go: those of a
        whole cohort need not fit into memory.

        Args:
            trainer: the trainer.
            module: the federated module.
            update: what the server decoded.
            index: where its entries lie in the global model: what was sent, parameters and then float buffers.
            report: what the client says about its training; names the client and its level.
        """


def follower(module: LightningModule) -> Callable[[Accepted | None, int, int], None]:
    """Return what tells the trainer's callbacks of a round: its arguments are those of :data:`Follower`."""
    trainer = module.trainer
    callbacks = [each for each in trainer.callbacks if isinstance(each, FederatedCallback)]  # type: ignore[attr-defined]

    def follow(accepted: Accepted | None, done: int, total: int) -> None:
        for callback in callbacks:
            if accepted is not None:
                callback.on_update(trainer, module, accepted.update, accepted.index, accepted.report)
            callback.on_client_end(trainer, module, done, total)

    return follow
