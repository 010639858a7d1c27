"""FLTrust: clients are trusted as far as their updates point where the server's own update points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from hetfl.aggregators.robust import RobustAggregator, Step, norm_of
from hetfl.aggregators.waiting import Waiting
from hetfl.aggregators.weighted import GivenMean, scaled
from hetfl.entries import gather_flat
from hetfl.errors import ConfigurationError
from hetfl.part import Part
from hetfl.piece import Facts
from hetfl.submodel import state_of
from hetfl.types import COPY, Report
from hetfl.updates import Update


class FLTrust(RobustAggregator):
    r"""The mean over holders of updates of the server's length, weighted by their cosine with the server's update.

    .. math:: \Delta_j = \frac{\sum_{k \in H_j} t_k\, u_{k,j} \lVert g_k \rVert / \lVert u_k \rVert}
        {\sum_{k \in H_j} t_k}, \qquad t_k = \max\Bigl(0, \frac{u_k \cdot g_k}{\lVert u_k \rVert \lVert g_k \rVert}
        \Bigr)

    with :math:`g_k` the entries of the client's part in the server's update g. The server makes g as clients do: local
    training of the global model at the largest level, on its own samples (``data.server_fraction``). An entry keeps its
    value if all of its holders have :math:`t_k = 0`. Float buffers have the weights of their client, and are shortened
    to the length of the server's change of them.

    The length of a step is that of g, so ``epochs`` should make the server take about as many steps as a client. Too
    many make training diverge.

    Cao, Fang, Liu, Gong: FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping, NDSS 2021 (arXiv
    2012.13995), for clients that hold all entries. The paper's server has 100 samples.

    Columns: ``defence/trusted``, the number of the round's updates with :math:`t_k > 0`.

    Args:
        epochs: passes over the server's samples; None: as many as clients do.
        most_bytes: bytes of waiting updates in memory; further ones are in files. None: no limit.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    reads_server_data = True

    def __init__(self, epochs: int | None = None, most_bytes: int | None = None) -> None:
        super().__init__(most_bytes)
        if epochs is not None and epochs < 1:
            raise ConfigurationError(f"Expected epochs of at least 1 or null for FLTrust but got {epochs}")
        self.epochs = epochs
        self._mean, self._trusted = GivenMean(), 0
        self._facts = Facts()
        self._round = (0, 0.0)

    def setup(self, facts: Facts) -> None:
        """Set the training on the server's data.

        Raises:
            ConfigurationError: there is no such training, several global models share tensors, or levels have their own
                copies of tensors.
        """
        super().setup(facts)
        if facts.shared:
            raise ConfigurationError(
                f"Expected global models without shared tensors for FLTrust but got {len(facts.shared)} shared ones, "
                "as it compares updates of whole models"
            )
        if copies := [name for net in facts.models for name in state_of(net) if COPY in name]:
            raise ConfigurationError(
                "Expected no per_level tensors for FLTrust, whose server trains the largest level, but got "
                f"{copies[0]!r}"
            )
        self._facts = facts

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self._round, self._trusted = (round, lr), 0

    def combine(self, tensors: Mapping[str, Tensor], waiting: Sequence[Waiting]) -> Step:
        """Return the step and the trust in the holders of every tensor.

        Raises:
            ConfigurationError: there is no training on the server's data.
        """
        if self._facts.server_training is None:
            raise ConfigurationError("Expected data.server_fraction above 0 for FLTrust but got 0")
        model = waiting[0].report.model if waiting else 0
        root, own = self._facts.server_training(*self._round, self.epochs, model), dict[int, Tensor]()

        def weighted() -> Iterator[tuple[Update, Part, Report, float]]:
            for each in waiting:
                if id(each.part) not in own:  # many clients have the same part
                    own[id(each.part)] = gather_flat(root, each.part)
                trust, lengths = self._compared(each, own[id(each.part)])
                self._trusted += trust > 0.0
                yield scaled(each.update, *lengths), each.part, each.report, trust

        return self._mean.of(tensors, weighted())

    def _compared(self, each: Waiting, own_D: Tensor) -> tuple[float, tuple[float, float]]:
        """Return the trust in an update, and the factors of its vector and of its exact block."""
        update = each.update
        given, exact = own_D.double().split([update.size, len(own_D) - update.size])
        norm, root = norm_of(update.values), norm_of(given)
        if not norm * root > 0.0:
            return 0.0, (1.0, 1.0)
        product = float(update.to_dense().to(given) @ given)
        of_exact = norm_of(update.exact)
        shorter = min(1.0, norm_of(exact) / of_exact) if of_exact > 0.0 else 1.0
        return max(0.0, product / (norm * root)), (root / norm, shorter)

    def columns(self) -> dict[str, float]:  # noqa: D102
        return {"defence/trusted": float(self._trusted)}
