"""ONNX: the prediction as a graph for onnxruntime and others, without torch."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.export.card import Card
from hetfl.export.formats import Format, Predict, reason
from hetfl.tree import Tree, single
from hetfl.types import NetFactory

INPUT, OUTPUT = "input", "logits"
DESCRIPTIONS = ("metadata_props", "doc_string")
"""What the exporter notes at every node, source lines with paths on this machine among it."""


class Onnx(Format):
    """The prediction, ``input`` (batch, ...) to ``logits`` (batch, K); runs on the CPU by onnxruntime when loaded."""

    name: ClassVar[str] = "onnx"
    tolerance: ClassVar[float] = 1e-5

    def require(self, *, writing: bool) -> None:  # noqa: D102
        packages = ["onnx", "onnxscript", "onnxruntime"] if writing else ["onnxruntime"]
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            raise ConfigurationError(
                f"Expected packages {', '.join(packages)} for format onnx but got no {', '.join(missing)}: "
                "pip install 'hetfl[onnx]'"
            )

    def encode(self, net: nn.Module, predict: Predict, inputs_N: Tree) -> bytes:  # noqa: D102
        samples = single(inputs_N, f"format {self.name} (safetensors takes any)")
        try:
            with quiet():
                exported = torch.onnx.export(
                    Traced(net, predict).eval(),
                    (samples,),
                    dynamo=True,
                    verbose=False,
                    input_names=[INPUT],
                    output_names=[OUTPUT],
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                )
                assert exported is not None
                model = exported.model_proto
        except Exception as error:  # of many kinds, from deep inside
            raise ConfigurationError(
                f"Expected a net that torch.onnx can translate, for format onnx, but got: {reason(error)}"
            ) from error
        _strip(model)
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    def decode(self, data: bytes, card: Card, net: NetFactory | None) -> nn.Module:  # noqa: D102
        self.require(writing=False)
        if b"location" in data:  # the key of a tensor's place in another file, which the digest would not cover
            raise ConfigurationError(
                "Expected an ONNX model with all values inside but got one that may name other files"
            )
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what is wrong is in the exception
        try:
            session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            hint = " (it has few operators for float64)" if card.dtype == "float64" else ""
            raise ConfigurationError(
                f"Expected an ONNX model that onnxruntime{hint} can run but got: {reason(error)}"
            ) from None
        return LoadedOnnx(session)


class LoadedOnnx(nn.Module):
    """A prediction that onnxruntime computes, on the CPU: float batches (N, ...) to logits (N, K).

    Args:
        session: the model, loaded.
    """

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session = session
        self.training = False

    def train(self, mode: bool = True) -> LoadedOnnx:
        """Stay in evaluation mode.

        Raises:
            ConfigurationError: training mode was asked for.
        """
        if mode:
            raise ConfigurationError(
                "Expected evaluation mode but got train(): onnx files hold predictions only, safetensors whole nets"
            )
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, K).

        Raises:
            ValueError: the batch has another dtype or shape than the model takes.
        """
        try:
            (logits,) = self._session.run([OUTPUT], {INPUT: x.detach().cpu().numpy()})
        except Exception as error:  # onnxruntime's own, of many kinds
            wanted = self._session.get_inputs()[0]
            raise ValueError(
                f"Expected a batch of {wanted.type} and shape {tuple(wanted.shape)} but got {x.dtype} and "
                f"{tuple(x.shape)}: {reason(error)}"
            ) from None
        return torch.from_numpy(logits)

    def __deepcopy__(self, memo: dict[int, Any]) -> LoadedOnnx:
        return LoadedOnnx(self._session)  # it has no state that a copy could change


class Traced(nn.Module):
    """A net and its method's prediction as one module of one argument, for the exporter.

    Args:
        net: the sub-model.
        predict: what its method makes of it.
    """

    def __init__(self, net: nn.Module, predict: Predict) -> None:
        super().__init__()
        self.net = net
        self._predict = predict

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, K)."""
        return self._predict(self.net, x)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter: its prints, logs and warnings are advice to its own authors."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _strip(message: Any) -> None:
    """Remove descriptions from a protobuf message and all that are in it."""
    for field, value in message.ListFields():
        if field.name in DESCRIPTIONS:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in value if hasattr(value, "__len__") else [value]:
                _strip(part)
