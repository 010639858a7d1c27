"""How much a client's data reduces the uncertainty of the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hetfl.errors import ConfigurationError
from hetfl.question import ClientProbe, ClientView, Question
from hetfl.tree import length, taken
from hetfl.value.data_value import DataValue, single


def entropy_drop(fisher_D: Tensor, samples: float, prior: float) -> float:
    r"""Return :math:`\tfrac12 \sum_j \log(1 + n F_j / \lambda)`.

    Args:
        fisher_D: diagonal F of the Fisher information per sample, shape (D,).
        samples: n.
        prior: λ.

    >>> round(entropy_drop(torch.tensor([1.0, 0.1, 0.0], dtype=torch.float64), 50, 1.0), 6)
    2.861793
    """
    return 0.5 * float(torch.log1p(samples * fisher_D.double() / prior).sum())


@dataclass(frozen=True)
class Certainty(Question):
    """The decrease of the parameters' entropy: one number.

    Attributes:
        prior: λ.
        batch: samples whose gradients are added before they are squared.
    """

    uses_model: ClassVar[bool] = True
    backward: ClassVar[bool] = True
    prior: float
    batch: int

    @property
    def size(self) -> int:  # noqa: D102
        return 1

    def answer(self, client: ClientView) -> Tensor:  # noqa: D102
        assert client.gradient is not None, "uses_model"
        total_D: Tensor | float = 0.0
        for whole, _ in client.batches:
            for start in range(0, length(whole), self.batch):
                outputs_NK = client.outputs(taken(whole, slice(start, start + self.batch)))
                if outputs_NK.dim() != 2:  # its labels are drawn, so that targets of any kind will do
                    raise ConfigurationError(
                        f"Expected scores of classes (N, K) for ParameterUncertainty but got {tuple(outputs_NK.shape)}"
                    )
                shares = torch.softmax(outputs_NK.detach().double(), dim=1).cpu()
                drawn = torch.multinomial(shares, 1, generator=client.random)[:, 0].to(outputs_NK.device)
                gradient_D = client.gradient(cross_entropy(outputs_NK, drawn, reduction="sum"))
                total_D = total_D + gradient_D.double().square()
        assert isinstance(total_D, Tensor)
        return torch.tensor([entropy_drop(total_D, 1.0, self.prior)], dtype=torch.float64)


class ParameterUncertainty(DataValue):
    r"""The decrease of the entropy of the parameters by a client's data, for a Gaussian posterior with its diagonal.

    .. math:: v_k = H(\theta) - H(\theta \mid D_k)
        \approx \tfrac12 \sum_j \log\left(1 + \frac{n_k F_{k,j}}{\lambda}\right), \qquad
        n F_j \approx \sum_{B} \Big(\sum_{i \in B} \partial_j \log p_\theta(\hat y_i \mid x_i)\Big)^2

    over batches B of the client's samples. The labels :math:`\hat y` are drawn from the model, not the client's: with
    those of the client, wrong labels would look informative. Drawn labels make gradients of samples independent with
    mean zero, so the square of a batch's sum has the expectation of the sum of squares. It grows with the number of
    samples, so do not multiply it by them. Entries that the client's part does not hold do not count.

    Needs scores of classes, and clients that answer questions. Leaks 1 number per client and round. Costs a download of
    the client's part, which it has then for its training, and a pass over its data with gradients.

    Args:
        prior: precision λ of the parameters before they see data, above 0.
        batch: samples of a batch B, at least 1; small batches have less variance, and take longer.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    again = True

    def __init__(self, prior: float = 1.0, batch: int = 16) -> None:
        super().__init__()
        if not 0.0 < prior < float("inf") or batch < 1:
            raise ConfigurationError(f"Expected prior above 0 and batch of at least 1 but got {prior}, {batch}")
        self.prior, self.batch = prior, batch

    def measured(self, clients: Sequence[int], probe: ClientProbe) -> dict[int, float]:  # noqa: D102
        return single(clients, Certainty(self.prior, self.batch), probe)
