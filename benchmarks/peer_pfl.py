"""Local rounds by pfl (apple/pfl-research): its simulated backend, federated averaging and PyTorch model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from bare import batches
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.common_types import Population
from pfl.context import CentralContext
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from work import CLIP, LR, MEAN, MOMENTUM, STD, WEIGHT_DECAY, Setting, Work


class WithLoss(nn.Module):
    """A net with the methods that pfl needs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.dtype = torch.get_default_dtype()

    def loss(self, images: Tensor, targets: Tensor, absent_K: Tensor) -> Tensor:
        """Return the masked cross-entropy of a batch."""
        inputs = images.to(self.dtype).sub_(255 * MEAN).div_(255 * STD)
        return F.cross_entropy(self.net(inputs).masked_fill(absent_K, 0.0), targets)

    def metrics(self) -> dict[str, object]:
        """Return no metrics, because these rounds are not evaluated."""
        return {}


class Samples(PyTorchTensorDataset):  # type: ignore[misc]  # pfl publishes no types
    """The samples of a client in a new order in every epoch; pfl's data set would keep the order."""

    def __init__(self, images: Tensor, targets: Tensor, seed: int) -> None:
        absent_K = torch.bincount(targets, minlength=10) == 0
        super().__init__((images, targets), train_kwargs={"absent_K": absent_K})
        self.random = torch.Generator().manual_seed(seed)

    def iter(self, batch_size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch."""
        images, targets = self.raw_data
        for batch in batches(torch.randperm(len(targets), generator=self.random), batch_size or len(targets)):
            yield images[batch], targets[batch]


class PflPeer:
    """One process with one resident model that clients train in turn; pfl adds up their deltas.

    Args:
        setting: the work of a round, at one level.
        tensors: the global model at that level.
    """

    def __init__(self, setting: Setting, tensors: Sequence[Tensor]) -> None:
        self.clients = setting.samples_of_clients()
        net = setting.level_net(setting.levels)
        with torch.no_grad():
            for parameter, value in zip(net.parameters(), tensors, strict=True):
                parameter.copy_(value)
        net.train()
        optimizer = partial(SGD, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.model = PyTorchModel(WithLoss(net), optimizer, SGD(net.parameters(), lr=1.0))
        self.algorithm = FederatedAveraging()
        self.waiting: Iterator[Work] = iter(())
        training = FederatedDataset(self._samples, lambda: next(self.waiting))
        self.backend = SimulatedBackend(training, training)
        self.context = CentralContext(
            current_central_iteration=0,
            do_evaluation=False,
            cohort_size=setting.cohort,
            population=Population.TRAIN,
            algorithm_params=NNAlgorithmParams(
                central_num_iterations=1, evaluation_frequency=1, train_cohort_size=setting.cohort, val_cohort_size=0
            ),
            model_train_params=NNTrainHyperParams(
                local_batch_size=setting.batch_size,
                local_num_epochs=setting.epochs,
                local_learning_rate=LR,
                local_max_grad_norm=CLIP,
            ),
        )

    def _samples(self, client: Work) -> Samples:
        number, _, seed = client
        return Samples(*self.clients[number], seed)

    def round(self, work: Sequence[Work]) -> Any:
        """Return the statistics of a cohort: the sum of the deltas, always in float32."""
        self.waiting = iter(work)
        context = replace(self.context, cohort_size=len(work))
        statistics, _ = self.backend.gather_results(self.model, self.algorithm, central_context=context)
        return statistics

    def total(self, trained: Any) -> Tensor:
        """Return the statistics as one vector."""
        return torch.cat([trained[name].flatten() for name in self.model.variable_map])

    def close(self) -> None:
        """Do nothing: there are no other processes."""
