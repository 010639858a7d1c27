"""Lightning callbacks with hooks inside a round."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Callback, LightningModule, Trainer

from hetfl.layout import Index
from hetfl.schedule import Accepted
from hetfl.types import Report
from hetfl.updates import Update


class FederatedCallback(Callback):
    """A Lightning callback with hooks for events inside a round."""

    def on_client_end(self, trainer: Trainer, module: LightningModule, done: int, total: int) -> None:
        """React to the end of a client's local training; called in the main process.

        Args:
            trainer: the trainer.
            module: the federated module.
            done: number of clients of this round that have finished, this one included.
            total: number of clients in this round.
        """

    def on_update(
        self, trainer: Trainer, module: LightningModule, update: Update, index: Index, report: Report
    ) -> None:
        """React to an update that the server accepted; called in the main process, in the order of the cohort.

        The client's ``on_client_end`` is called next. Keep no reference to an update: the updates of a whole cohort
        may not fit into memory.

        Args:
            trainer: the trainer.
            module: the federated module.
            update: the decoded update.
            index: positions of its entries in the global model: the sent parameters, then the float buffers.
            report: the client's report of its training, with the client's id and level.
        """


def follower(module: LightningModule) -> Callable[[Accepted | None, int, int], None]:
    """Return a function that notifies the trainer's callbacks; its arguments are those of :data:`Follower`."""
    trainer = module.trainer
    callbacks = [each for each in trainer.callbacks if isinstance(each, FederatedCallback)]  # type: ignore[attr-defined]

    def follow(accepted: Accepted | None, done: int, total: int) -> None:
        for callback in callbacks:
            if accepted is not None:
                callback.on_update(trainer, module, accepted.update, accepted.index, accepted.report)
            callback.on_client_end(trainer, module, done, total)

    return follow
