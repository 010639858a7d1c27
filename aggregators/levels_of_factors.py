"""Low-rank factors of levels that a rule for products brings together."""

from __future__ import annotations

from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.factors import A
from hetfl.layout import IndexEntry
from hetfl.piece import Facts
from hetfl.submodel import put


def check_one_scale(rule: str, facts: Facts) -> None:
    """Refuse levels whose layers scale their products by other factors s than the largest level's.

    Args:
        rule: name of the rule, for messages.
        facts: of the federation.

    Raises:
        ConfigurationError: there is such a level.
    """
    scales = facts.scales()
    for level, of_level in scales.items():
        first = scales[facts.levels[0]]
        for layer, scale in of_level.items():
            if scale != first[layer]:
                raise ConfigurationError(
                    f"Expected one scale of products at all levels, such as scale: rslora, for {rule} but got "
                    f"{first[layer]:g} at level {facts.levels[0]} and {scale:g} at level {level}"
                )


def check_trained_a(rule: str, facts: Facts) -> None:
    """Refuse frozen factors A.

    Args:
        rule: name of the rule, for messages.
        facts: of the federation.

    Raises:
        ConfigurationError: a factor A is frozen.
    """
    frozen = [name for name in facts.frozen if name.rpartition(".")[2] == A]
    if frozen:
        raise ConfigurationError(
            f"Expected trained factors A for {rule} but got a frozen {frozen[0]!r}: with A frozen, the mean of B over "
            "holders (HolderMean, SampleMean) is that of the products"
        )


def widened(factor: Tensor, entry: IndexEntry, whole: Tensor, ranks: int) -> Tensor:
    """Return a factor with the inputs or outputs of the global one; those that it does not hold are 0.

    Args:
        factor: as a client holds it.
        entry: its positions in the global factor.
        whole: the global factor.
        ranks: its dimension of ranks, which stays as it is.
    """
    sizes, places = list(whole.shape), list(entry)
    sizes[ranks], places[ranks] = factor.shape[ranks], slice(0, factor.shape[ranks])
    if list(factor.shape) == sizes:
        return factor
    wide = factor.new_zeros(sizes)
    put(wide, tuple(places), factor)
    return wide
