"""What methods with distillation share: losses on a teacher's outputs, and the check that these are a distribution."""

from __future__ import annotations

from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.objectives import Objective


def soft_cross_entropy(logits: Tensor, teacher: Tensor) -> Tensor:
    r"""Return the cross-entropy of logits (N, ..., K) with the distribution of a teacher's logits, which is constant.

    .. math:: -\frac{1}{N} \sum_n \sum_c \mathrm{softmax}(t_n)_c \log \mathrm{softmax}(z_n)_c

    The mean is over all positions, also over those whose targets an objective ignores.
    """
    return -(teacher.detach().softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


def check_distribution(objective: Objective, distillation: float) -> None:
    """Refuse distillation of outputs that are no distribution.

    Args:
        objective: the objective.
        distillation: the method's setting: whether it distils, or the weight.

    Raises:
        ConfigurationError: it distils, and the outputs are no distribution.
    """
    if distillation and not objective.probabilities:
        off = "false" if isinstance(distillation, bool) else "0"
        raise ConfigurationError(
            f"Expected distillation {off} for {type(objective).__name__}, whose outputs are no distribution, but got "
            f"{str(distillation).lower()}"
        )
