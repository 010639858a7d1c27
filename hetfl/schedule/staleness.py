"""What an update is worth, given its staleness."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.piece import described, settings_of


class StalenessWeight(ABC):
    r"""The factor s(τ) of an entry's update, where τ is the number of server steps that changed the entry meanwhile.

    The functions are those of FedAsync (Xie, Koyejo, Gupta: Asynchronous Federated Optimization, 2019, arXiv
    1903.03934, section 5.2), with :math:`s(0) = 1`.
    """

    @abstractmethod
    def factor(self, staleness_D: Tensor) -> Tensor:
        """Return s(τ) for each entry, shape (D,), in the dtype of the argument.

        Args:
            staleness_D: τ, whole numbers as floats, shape (D,).
        """

    def describe(self) -> str:
        """Return the function with its settings as short text."""
        return described(type(self).__name__, settings_of(self))


class Constant(StalenessWeight):
    """Old updates count as much as new ones: s(τ) = 1."""

    def factor(self, staleness_D: Tensor) -> Tensor:  # noqa: D102
        return staleness_D.new_ones(staleness_D.shape)


class Polynomial(StalenessWeight):
    r""":math:`s(\tau) = (1 + \tau)^{-a}`; with a = 0.5 also the weight of FedBuff (Nguyen et al., AISTATS 2022).

    Args:
        exponent: a.

    Raises:
        ConfigurationError: a is negative.
    """

    def __init__(self, exponent: float = 0.5) -> None:
        if not 0 <= exponent < math.inf:
            raise ConfigurationError(f"Expected a finite exponent of at least 0 but got {exponent}")
        self.exponent = exponent

    def factor(self, staleness_D: Tensor) -> Tensor:  # noqa: D102
        return (1 + staleness_D).pow(-self.exponent)


class Hinge(StalenessWeight):
    r"""Full weight up to a staleness b, then a steep decrease.

    .. math:: s(\tau) = 1 \;\text{if}\; \tau \le b, \quad \frac{1}{a (\tau - b) + 1} \;\text{otherwise}

    Args:
        slope: a.
        until: b.

    Raises:
        ConfigurationError: a or b is negative.
    """

    def __init__(self, slope: float = 10.0, until: float = 6.0) -> None:
        for name, value in (("slope", slope), ("until", until)):
            if not 0 <= value < math.inf:
                raise ConfigurationError(f"Expected a finite {name} of at least 0 but got {value}")
        self.slope, self.until = slope, until

    def factor(self, staleness_D: Tensor) -> Tensor:  # noqa: D102
        return 1 / (self.slope * (staleness_D - self.until).clamp_min(0) + 1)
