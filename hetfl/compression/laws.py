"""How a threshold follows the learning rate: λ_t as a multiple of λ_0."""

from __future__ import annotations

import math
from typing import Literal

from hetfl.errors import ConfigurationError

Law = Literal["paper", "power"]
"""``paper``: the law of γ-FedHT, which rises and falls; ``power``: a power of the learning rate."""


def paper_law(lr: float, first_lr: float, last_lr: float, alpha: float) -> float:
    r"""Return λ_t / λ_0 of γ-FedHT (arXiv 2505.12479, algorithm 1, line 11).

    .. math:: \sqrt{ \frac{γ_t^α (γ_0 γ_T)^{α/2}}{γ_t^{2α} + (γ_0 γ_T)^α} } = (2 \cosh u)^{-1/2},
        \quad u = α \ln \frac{γ_t}{\sqrt{γ_0 γ_T}}

    It has its peak 1/√2 where γ_t = √(γ_0 γ_T), and is that constant if α = 0.

    Args:
        lr: γ_t, at least 0.
        first_lr: γ_0 > 0.
        last_lr: γ_T > 0.
        alpha: α ≥ 0.

    >>> round(paper_law(0.1, 1.0, 0.01, 0.5), 4), round(paper_law(1.0, 1.0, 0.01, 0.5), 4)
    (0.7071, 0.5362)
    """
    if alpha == 0:
        return math.sqrt(0.5)
    if lr == 0:
        return 0.0
    exponent = alpha * abs(math.log(lr) - (math.log(first_lr) + math.log(last_lr)) / 2)
    # 1 / (2 cosh u) = e^-|u| / (1 + e^-2|u|), which cannot overflow.
    return math.sqrt(math.exp(-exponent) / (1 + math.exp(-2 * exponent)))


def power_law(lr: float, first_lr: float, alpha: float) -> float:
    """Return λ_t / λ_0 = (γ_t / γ_0)^α; 1 if α = 0.

    Args:
        lr: γ_t, at least 0.
        first_lr: γ_0 > 0.
        alpha: α ≥ 0.

    Raises:
        ConfigurationError: it is beyond every number.
    """
    try:
        return 1.0 if alpha == 0 else (lr / first_lr) ** alpha
    except OverflowError as error:
        raise ConfigurationError(
            f"Expected alpha and reference_lr that give a finite threshold but got ({lr} / {first_lr}) ** {alpha}"
        ) from error
