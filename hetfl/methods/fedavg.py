"""Federated averaging.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized
Data, AISTATS 2017 (arXiv 1602.05629).
"""

from __future__ import annotations

from typing import ClassVar

from lightning.pytorch.utilities import rank_zero_info

from hetfl.aggregators import Aggregator, SampleMean
from hetfl.federation import FederatedModule


class FedAvg(FederatedModule):
    r"""Every client trains the whole model; the server averages the deltas, weighted by number of samples.

    .. math:: \theta \leftarrow \theta + \sum_{k} \frac{n_k}{\sum_j n_j} \Delta_k

    With a server optimizer other than SGD(lr=1) it is FedOpt (Reddi et al., ICLR 2021, arXiv 2003.00295); with Adam it
    is FedAdam.

    Levels of several sizes are allowed, though the paper has none: each entry's mean is then over its holders, as in
    :class:`~hetfl.HeteroFL` without its rules about labels. A run logs this once.
    """

    default_aggregator: ClassVar[type[Aggregator]] = SampleMean

    def on_train_start(self) -> None:
        """Prepare training; log the mean's definition if levels have several sizes."""
        super().on_train_start()
        sizes = set(self.levels.sizes.values())
        if len(sizes) > 1 or self.parts.masks:
            rank_zero_info(
                f"FedAvg with {len(self.levels)} levels of several sizes: every entry's mean is over the clients that "
                "hold it"
            )
