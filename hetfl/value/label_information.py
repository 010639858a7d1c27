"""How much the present model tells about a client's labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hetfl.question import ClientProbe, ClientView, Question
from hetfl.value.data_value import DataValue, single
from hetfl.value.feature_information import entropy
from hetfl.value.features import classes_of


@dataclass(frozen=True)
class Explained(Question):
    """The entropy of a client's labels minus the model's cross-entropy on its samples: one number."""

    uses_model: ClassVar[bool] = True

    @property
    def size(self) -> int:  # noqa: D102
        return 1

    def answer(self, client: ClientView) -> Tensor:  # noqa: D102
        total, labels = 0.0, []
        for inputs, targets in client.batches:
            labels.append(classes_of(targets))
            total += float(cross_entropy(client.outputs(inputs).double(), targets, reduction="sum"))
        labels_n = torch.cat(labels)
        return torch.tensor([entropy(labels_n.bincount()) - total / len(labels_n)], dtype=torch.float64)


class LabelInformation(DataValue):
    r"""A lower bound of the mutual information of a client's inputs and labels, by the present global model, in nats.

    .. math:: I_k(x; y) = H_k(y) - H_k(y \mid x) \ge v_k = H_k(y) - F_k(\theta_t)

    with :math:`F_k` the mean cross-entropy, as the model's cross-entropy is at least the conditional entropy. The
    entropy of labels has the correction for its bias. Wrong labels and few classes make it small, and below 0 where the
    model is worse than the frequencies of the labels.

    Needs one class per sample, and clients that answer questions. Leaks 1 number per client and round. Costs a download
    of the client's part, which it has then for its training, and a forward pass over its data.
    """

    again = True

    def measured(self, clients: Sequence[int], probe: ClientProbe) -> dict[int, float]:  # noqa: D102
        return single(clients, Explained(), probe)
