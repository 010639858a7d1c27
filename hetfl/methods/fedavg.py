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
    r"""Everyone trains the whole model; the server takes the mean of the results, weighted by number of samples.

    .. math:: \theta \leftarrow \theta + \sum_{k} \frac{n_k}{\sum_j n_j} \Delta_k

    With a server optimizer other than SGD(lr=1) it is FedOpt (Reddi et al., ICLR 2021): Adam makes it FedAdam.

    Levels of several sizes are allowed, and are no part of the paper: the mean of each entry is then over its holders,
    as in :class:`~hetfl.HeteroFL` without its rules about labels. A run says so once.
    """

    default_aggregator: ClassVar[type[Aggregator]] = SampleMean

    def on_train_start(self) -> None:
        """Begin to train; say what the mean is over if levels have several sizes."""
        super().on_train_start()
        sizes = set(self.levels.sizes.values())
        if len(sizes) > 1 or self.parts.masks:
            rank_zero_info(
                f"FedAvg with {len(self.levels)} levels of several sizes: every entry's mean is over the clients that "
                "hold it"
            )
