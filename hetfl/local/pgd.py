"""Projected gradient descent: small perturbations of samples that raise the loss (Madry et al., ICLR 2018)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.piece import described, settings_of
from hetfl.tree import on_device


@dataclass(frozen=True)
class PGD:
    r"""An attack within an L∞ ball, from a random start.

    .. math:: \delta \leftarrow \mathrm{clip}_{[-r, r]}\bigl(\delta + \eta \, \mathrm{sign} \nabla_\delta
        L(x + \delta)\bigr)

    The paper's clipping to valid pixels is left out: inputs of nets are normalised, and have no bounds.

    Args:
        radius: r, in the units of the net's inputs.
        steps: number of steps.
        step_size: :math:`\eta`, in the same units.

    Raises:
        ConfigurationError: ``radius`` or ``step_size`` is not above 0, or ``steps`` is below 1.
    """

    radius: float = 8 / 255
    steps: int = 7
    step_size: float = 2 / 255

    def __post_init__(self) -> None:
        """Check the settings."""
        if not self.radius > 0 or not self.step_size > 0 or self.steps < 1:
            raise ConfigurationError(
                "Expected radius and step_size above 0 and steps of at least 1 for PGD but got "
                f"{self.radius:g}, {self.step_size:g}, {self.steps}"
            )

    def describe(self) -> str:
        """Return the settings as short text."""
        return described(type(self).__name__, settings_of(self))

    def perturbed(self, inputs: Tensor, loss: Callable[[Tensor], Tensor], generator: torch.Generator) -> Tensor:
        """Return perturbed inputs, without gradient.

        Args:
            inputs: shape (N, ...).
            loss: returns the loss of inputs.
            generator: of the random start, on the CPU.
        """
        start = torch.rand(inputs.shape, generator=generator, dtype=inputs.dtype)
        delta = on_device((2.0 * start - 1.0) * self.radius, inputs.device)
        for _ in range(self.steps):
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(loss(inputs + delta.requires_grad_()), delta)
            delta = (delta.detach() + self.step_size * slope.sign()).clamp(-self.radius, self.radius)
        return inputs + delta
