"""Clients of low-rank adapters train B in one round and A in the next."""

from __future__ import annotations

from hetfl.errors import ConfigurationError
from hetfl.factors import A, B
from hetfl.part import Part, only
from hetfl.parts.prefix import Prefix
from hetfl.piece import Facts
from hetfl.types import COPY


class AlternatingFactors(Prefix):
    """In even rounds clients train and send all but the factors A, in odd rounds all but the factors B.

    With one factor the same for all clients, the mean of the other one is that of the products (RoLoRA, Chen et al.,
    NeurIPS 2025, arXiv 2502.01755). B comes first: it begins at 0, where A has no gradient.
    """

    trains_sent = True

    def setup(self, facts: Facts) -> None:
        """Check the facts.

        Raises:
            ConfigurationError: the factors A are frozen.
        """
        if frozen := [name for name in facts.frozen if name.rpartition(".")[2] == A]:
            raise ConfigurationError(
                f"Expected trained factors A for AlternatingFactors but got a frozen {frozen[0]!r}: with A frozen, "
                "clients train B in every round, which Prefix does"
            )

    def sent(self, part: Part, level: str, round: int, client: int) -> Part:  # noqa: D102
        rests = A if round % 2 == 0 else B
        return only(part, frozenset(name for name in part if name.partition(COPY)[0].rpartition(".")[2] != rests))
