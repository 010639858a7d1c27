r"""Penalties that make weights sparse, and sums of penalties.

A penalty R is one of the weights: the trained parameters of two and more dimensions. Biases and norm layers are not
penalised. Without the proximal step a subgradient of R is added to the loss's gradient, before clipping; weights come
near zero and rarely are zero. With it, each step of the optimizer is followed by

.. math:: \theta \leftarrow \arg\min_x \; \tfrac12 \lVert x - \theta \rVert^2 + \gamma R(x)

with :math:`\gamma` the clients' learning rate, so that zeros are exact. Clipping then does not act on R.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.local.penalty import LARGEST, Penalty


class ByWeight(ABC):
    """Lets a penalty of single weights act by its gradient or by its proximal step.

    It is no penalty itself: a penalty derives from it and from :class:`~hetfl.local.Penalty`.
    """

    proximal_step: bool

    @abstractmethod
    def gradient(self, weight_Rn: Tensor) -> Tensor:
        """Return a subgradient of R at a weight, shape (..., R, n): R rows of n entries; 0 at zero."""

    @abstractmethod
    def proximal(self, weight_Rn: Tensor, lr: float) -> Tensor:
        """Return the result of the proximal step at a weight, shape (..., R, n), with the learning rate γ."""

    def add_gradient(  # noqa: D102
        self, grad_D: Tensor, theta_D: Tensor, anchor_D: Tensor, memory_D: Tensor | None, layout: Layout
    ) -> None:
        if not self.proximal_step:
            add_by_weight(grad_D, theta_D, layout, self.gradient)

    def after_step(self, theta_D: Tensor, lr: float, layout: Layout) -> None:  # noqa: D102
        if self.proximal_step:
            replace_by_weight(theta_D, layout, partial(self.proximal, lr=lr))


class L1(ByWeight, Penalty):
    r"""The lasso: :math:`R(\theta) = \lambda \sum_i |\theta_i|`.

    The proximal step is the soft threshold :math:`\mathrm{sign}(\theta_i) \max(|\theta_i| - \gamma \lambda, 0)`.

    Tibshirani: Regression shrinkage and selection via the lasso, JRSS B 1996; Parikh, Boyd: Proximal Algorithms, 2014,
    section 6.5.

    Args:
        weight: :math:`\lambda`.
        proximal_step: whether the penalty acts by the proximal step.

    Raises:
        ConfigurationError: the weight is out of its range.
    """

    def __init__(self, weight: float, proximal_step: bool = False) -> None:
        _check(weight=weight)
        self.weight, self.proximal_step = weight, proximal_step

    def gradient(self, weight_Rn: Tensor) -> Tensor:  # noqa: D102
        return weight_Rn.sign() * self.weight

    def proximal(self, weight_Rn: Tensor, lr: float) -> Tensor:  # noqa: D102
        return F.softshrink(weight_Rn, self.weight * lr)


class ElasticNet(ByWeight, Penalty):
    r"""The elastic net: :math:`R(\theta) = \sum_i \lambda_1 |\theta_i| + \frac{\lambda_2}{2} \theta_i^2`.

    The proximal step is the soft threshold :math:`\gamma \lambda_1`, divided by :math:`1 + \gamma \lambda_2`.

    Zou, Hastie: Regularization and variable selection via the elastic net, JRSS B 2005; Parikh, Boyd: Proximal
    Algorithms, 2014, section 6.5.

    Args:
        l1: :math:`\lambda_1`.
        l2: :math:`\lambda_2`.
        proximal_step: whether the penalty acts by the proximal step.

    Raises:
        ConfigurationError: a weight is out of its range.
    """

    def __init__(self, l1: float, l2: float, proximal_step: bool = False) -> None:
        _check(l1=l1, l2=l2)
        self.l1, self.l2, self.proximal_step = l1, l2, proximal_step

    def gradient(self, weight_Rn: Tensor) -> Tensor:  # noqa: D102
        return weight_Rn.sign() * self.l1 + weight_Rn * self.l2

    def proximal(self, weight_Rn: Tensor, lr: float) -> Tensor:  # noqa: D102
        return F.softshrink(weight_Rn, self.l1 * lr) / (1.0 + self.l2 * lr)


class GroupLasso(ByWeight, Penalty):
    r"""The group lasso over output channels: :math:`R(\theta) = \lambda \sum_g \sqrt{n_g} \, \lVert \theta_g \rVert_2`.

    A group is a row of a weight, with :math:`n_g` entries. The proximal step multiplies it by :math:`\max(1 - \gamma
    \lambda \sqrt{n_g} / \lVert \theta_g \rVert_2, 0)`, so that whole rows become zero.

    Yuan, Lin: Model selection and estimation in regression with grouped variables, JRSS B 2006; Wen, Wu, Wang, Chen,
    Li: Learning Structured Sparsity in Deep Neural Networks, NeurIPS 2016 (arXiv 1608.03665), whose groups have no
    factor :math:`\sqrt{n_g}`.

    Args:
        weight: :math:`\lambda`.
        proximal_step: whether the penalty acts by the proximal step.

    Raises:
        ConfigurationError: the weight is out of its range.
    """

    def __init__(self, weight: float, proximal_step: bool = False) -> None:
        _check(weight=weight)
        self.weight, self.proximal_step = weight, proximal_step

    def gradient(self, weight_Rn: Tensor) -> Tensor:  # noqa: D102
        norm_R1 = torch.linalg.vector_norm(weight_Rn, dim=-1, keepdim=True)
        direction_Rn = torch.where(norm_R1 > 0, weight_Rn / norm_R1, torch.zeros_like(weight_Rn))
        return direction_Rn * (self.weight * math.sqrt(weight_Rn.shape[-1]))

    def proximal(self, weight_Rn: Tensor, lr: float) -> Tensor:  # noqa: D102
        norm_R1 = torch.linalg.vector_norm(weight_Rn, dim=-1, keepdim=True)
        threshold = self.weight * math.sqrt(weight_Rn.shape[-1]) * lr
        kept_Rn = weight_Rn * (1.0 - threshold / norm_R1)
        return torch.where(norm_R1 > threshold, kept_Rn, torch.zeros_like(weight_Rn))


class Sum(Penalty):
    """The sum of penalties without memory, such as FedProx with a lasso.

    Proximal steps act one after the other, in the order of the penalties.

    Args:
        penalties: the summands.

    Raises:
        ConfigurationError: there are none, or one of them has a memory.
    """

    def __init__(self, penalties: list[Penalty]) -> None:
        if not penalties:
            raise ConfigurationError("Expected penalties for Sum but got none")
        for each in penalties:
            if each.memories is not None:
                raise ConfigurationError(
                    f"Expected penalties without memory for Sum but got {type(each).__name__}: use it alone"
                )
        self.penalties = list(penalties)

    def settings(self) -> dict[str, object]:  # noqa: D102
        return {"penalties": [each.describe() for each in self.penalties]}

    def add_gradient(  # noqa: D102
        self, grad_D: Tensor, theta_D: Tensor, anchor_D: Tensor, memory_D: Tensor | None, layout: Layout
    ) -> None:
        for each in self.penalties:
            each.add_gradient(grad_D, theta_D, anchor_D, None, layout)

    def after_step(self, theta_D: Tensor, lr: float, layout: Layout) -> None:  # noqa: D102
        for each in self.penalties:
            each.after_step(theta_D, lr, layout)


def add_by_weight(sum_D: Tensor, theta_D: Tensor, layout: Layout, function: Callable[[Tensor], Tensor]) -> None:
    """Add a function of each weight in ``theta_D`` to the same entries of ``sum_D``, in place."""
    for sum_Rn, weight_Rn in zip(rows_of(sum_D, layout), rows_of(theta_D, layout), strict=True):
        sum_Rn.add_(function(weight_Rn))


def replace_by_weight(theta_D: Tensor, layout: Layout, function: Callable[[Tensor], Tensor]) -> None:
    """Replace each weight in ``theta_D`` by a function of it, in place."""
    for weight_Rn in rows_of(theta_D, layout):
        weight_Rn.copy_(function(weight_Rn))


def rows_of(vector_D: Tensor, layout: Layout) -> Iterator[Tensor]:
    """Yield a view of each weight in a vector, shape (..., D), as its rows: shape (..., R, n)."""
    for shape, offset, size in zip(layout.shapes.values(), layout.offsets, layout.sizes, strict=True):
        if len(shape) > 1 and size:
            yield vector_D[..., offset : offset + size].unflatten(-1, (shape[0], size // shape[0]))


def _check(**weights: float) -> None:
    for name, weight in weights.items():
        if not 0 < weight <= LARGEST:
            raise ConfigurationError(f"Expected {name} above 0 and at most {LARGEST:g} but got {weight}")
