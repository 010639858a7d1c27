"""The volume that a client's samples span in a space of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hetfl.arguments import choice
from hetfl.errors import ConfigurationError
from hetfl.question import ClientProbe, ClientView
from hetfl.value.data_value import DataValue, single
from hetfl.value.features import FeatureQuestion, Moments, NetMoments, mean_and_variance, of_client, valid_moments

Source = Literal["inputs", "net"]
"""What features are a projection of: the inputs of the net, or those of its last linear layer."""


def log_volume(x_nd: Tensor, ridge: float) -> float:
    r"""Return :math:`\tfrac12 \log\det(X^\top X + \varepsilon I)` of features, shape (n, d), float64.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    >>> round(2 * log_volume(x, 1.0), 6)  # of I + X'X, whose determinant is 17
    2.833213
    """
    gram_dd = x_nd.T @ x_nd + ridge * torch.eye(x_nd.shape[1], dtype=x_nd.dtype)
    return 0.5 * float(torch.linalg.slogdet(gram_dd).logabsdet)


@dataclass(frozen=True)
class LogVolume(FeatureQuestion):
    """The log-volume of a client's standardised features: one number.

    Attributes:
        means: of each feature over the clients that were asked first.
        deviations: of each feature over them.
        ridge: ε.
    """

    means: tuple[float, ...]
    deviations: tuple[float, ...]
    ridge: float

    @property
    def size(self) -> int:  # noqa: D102
        return 1

    def answer(self, client: ClientView) -> Tensor:  # noqa: D102
        x_nd = of_client(client, self.features, self.seed, self.uses_model)
        standard_nd = (x_nd - x_nd.new_tensor(self.means)) / x_nd.new_tensor(self.deviations)
        return x_nd.new_tensor([log_volume(standard_nd, self.ridge)])


@dataclass(frozen=True)
class NetLogVolume(LogVolume):
    """The log-volume of the features of the net that the client receives."""

    uses_model: ClassVar[bool] = True


class GramDeterminant(DataValue):
    r"""Half the log-determinant of the Gram matrix of a client's features, the logarithm of the volume they span.

    .. math:: v_k = \tfrac12 \log\det(X_k^\top X_k + \varepsilon I)

    X has a row for every sample and d features: a random projection of the inputs, the same for all clients,
    standardised by the means and deviations over the clients of the first round that asks. The ridge ε keeps the value
    finite with fewer than d samples. It does not look at labels. Copies look valuable: the same samples twice add
    :math:`(d/2) \log 2`.

    With ``of="net"`` the projection is that of the inputs of the last linear layer of the sub-model that a client
    receives, and clients are asked in every round, with means and deviations of the round. Levels of different widths
    have different projections, so their values are comparable in scale, and not exactly.

    Needs inputs of floating-point numbers, and clients that answer questions. Leaks 1 number per client, once or in
    every round; clients of the first, or of every, round also send sums of their features and of the squares, 1 + 2 d
    numbers. Costs one pass over the inputs without the net, :math:`2 n d (E + d)` operations for n samples of E
    numbers; with ``of="net"`` also the download of the client's part, which it has then for its training, and a pass of
    its samples through it.

    Args:
        features: d.
        ridge: ε, above 0.
        of: ``inputs``, or ``net`` for the inputs of the net's last linear layer.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    def __init__(self, features: int = 16, ridge: float = 1.0, of: Source = "inputs") -> None:
        super().__init__()
        if features < 1 or not 0.0 < ridge < float("inf"):
            raise ConfigurationError(f"Expected features of at least 1 and ridge above 0 but got {features}, {ridge}")
        self.features, self.ridge, self.of = features, ridge, choice("of", of, Source)
        self.again = of == "net"
        self.scale: tuple[list[float], list[float]] | None = None  # means and deviations

    def measured(self, clients: Sequence[int], probe: ClientProbe) -> dict[int, float]:  # noqa: D102
        if self.scale is None or self.again:
            moments = NetMoments if self.of == "net" else Moments
            answers = probe.answers(clients, moments(self.features, self.seed)).values()
            if not (sums := [each for each in answers if valid_moments(each)]):
                return {}
            mean_d, variance_d = mean_and_variance(torch.stack(sums).sum(0))
            deviation_d = variance_d.sqrt()
            self.scale = mean_d.tolist(), deviation_d.where(deviation_d > 0, 1.0).tolist()
        means, deviations = self.scale
        volume = NetLogVolume if self.of == "net" else LogVolume
        question = volume(self.features, self.seed, tuple(means), tuple(deviations), self.ridge)
        return single(clients, question, probe)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {**super().state_dict(), "scale": self.scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state)
        self.scale = None if state["scale"] is None else (list(state["scale"][0]), list(state["scale"][1]))
