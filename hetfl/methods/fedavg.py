"""Federated averaging.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized
Data, AISTATS 2017 (arXiv 1602.05629).
"""

from __future__ import annotations

from typing import ClassVar

from hetfl.aggregators import Aggregator, SampleMean
from hetfl.federation import FederatedModule


class FedAvg(FederatedModule):
    r"""Everyone trains the whole model; the server takes the mean of the results, weighted by number of samples.

    .. math:: \theta \leftarrow \theta + \sum_{k} \frac{n_k}{\sum_j n_j} \Delta_k

    With a server optimizer other than SGD(lr=1) it is FedOpt (Reddi et al., ICLR 2021): Adam makes it FedAdam.
    """

    default_aggregator: ClassVar[type[Aggregator]] = SampleMean
