"""Mean over holders, weighted by the selection policy."""

from __future__ import annotations

from hetfl.aggregators.holder_mean import HolderMean
from hetfl.types import Report


class SelectionMean(HolderMean):
    r"""Mean over the holders of each entry, weighted by the selection policy.

    .. math:: \Delta_j = \frac{\sum_{k \in H_j} \gamma_k u_{k,j}}{\sum_{k \in H_j} \gamma_k}

    With :class:`~hetfl.selection.DivFL` (Balakrishnan et al., ICLR 2022) :math:`\gamma_k` is the number of clients that
    client k represents. With all other policies :math:`\gamma_k = 1`, which is :class:`HolderMean`.

    Args:
        denominator: ``holders``: the sum of weights is over the holders of an entry; ``cohort``: over all clients.

    Raises:
        ConfigurationError: ``denominator`` is neither of them.
    """

    def weight(self, report: Report) -> float:
        """Return the client's weight γ_k by the selection policy."""
        return report.weight
