"""pt2: the prediction as a program of torch.export, which needs no hetfl and no class of the net to run."""

from __future__ import annotations

import io
from typing import ClassVar

import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.export.archive import cleaned
from hetfl.export.card import Card
from hetfl.export.formats import Format, Predict, Prediction, Traced, quiet, reason
from hetfl.tree import Tree, single
from hetfl.types import NetFactory


class Program(Format):
    """The prediction, (N, ...) to (N, K) for any N; ``torch.export.load`` reads the file as well."""

    name: ClassVar[str] = "pt2"
    tolerance: ClassVar[float] = 1e-5

    def encode(self, net: nn.Module, predict: Predict, inputs_N: Tree) -> bytes:  # noqa: D102
        samples = single(inputs_N, f"format {self.name} (safetensors takes any)")
        target = io.BytesIO()
        try:
            with quiet():
                program = torch.export.export(
                    Traced(net, predict).eval(), (samples,), dynamic_shapes=({0: torch.export.Dim("batch")},)
                )
                program.example_inputs = None  # torch would pickle them
                torch.export.save(program, target)
        except Exception as error:  # of many kinds, from deep inside
            raise ConfigurationError(
                f"Expected a net that torch.export can trace, for format pt2, but got: {reason(error)}"
            ) from error
        return cleaned(target.getvalue())

    def decode(self, data: bytes, card: Card, net: NetFactory | None) -> nn.Module:  # noqa: D102
        archive = io.BytesIO(cleaned(data))
        try:
            with quiet():
                return LoadedProgram(torch.export.load(archive).module())
        except Exception as error:
            raise ConfigurationError(f"Expected an exported program but got: {reason(error)}") from None


class LoadedProgram(Prediction):
    """A prediction that torch runs, operator by operator.

    Args:
        program: the graph, as ``torch.export`` gives it back.
    """

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, K)."""
        logits: Tensor = self.program(x)
        return logits
