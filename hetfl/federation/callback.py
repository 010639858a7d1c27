"""Lightning callbacks that follow a round from inside."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer


class FederatedCallback(Callback):
    """A Lightning callback with a hook for what happens inside a round."""

    def on_client_end(self, trainer: Trainer, module: LightningModule, done: int, total: int) -> None:
        """Follow a client's local training; called in the main process.

        Args:
            trainer: the trainer.
            module: the federated module.
            done: number of clients of this round that have finished, this one included.
            total: number of clients in this round.
        """
