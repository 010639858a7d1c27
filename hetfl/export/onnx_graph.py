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
"""Fields that the exporter adds to every node; they contain source lines and paths of this machine."""


class Onnx(Format):
    """The prediction, from ``input`` (batch, ...) to ``logits`` (batch, K); onnxruntime runs it on the CPU."""

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
        except Exception as error:  # the exporter raises many kinds of errors
            raise ConfigurationError(
                f"Expected a net that torch.onnx can translate, for format onnx, but got: {reason(error)}"
            ) from error
        _strip(model)
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    def decode(self, data: bytes, card: Card, net: NetFactory | None) -> nn.Module:  # noqa: D102
        self.require(writing=False)
        if b"location" in data and _names_files(data):  # such tensors have this key, and the digest does not cover them
            raise ConfigurationError(
                "Expected an ONNX model with all values inside but got one that may name other files"
            )
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # the exception has the same message
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
        session: the session with the loaded model.
    """

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session = session
        self.training = False

    def train(self, mode: bool = True) -> LoadedOnnx:
        """Stay in evaluation mode.

        Raises:
            ConfigurationError: ``mode`` is true.
        """
        if mode:
            raise ConfigurationError(
                "Expected evaluation mode but got train(): onnx files hold predictions only, safetensors whole nets"
            )
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, K).

        Raises:
            ValueError: the model does not take a batch of this dtype or shape.
        """
        try:
            (logits,) = self._session.run([OUTPUT], {INPUT: x.detach().cpu().numpy()})
        except Exception as error:  # onnxruntime raises many kinds of errors
            wanted = self._session.get_inputs()[0]
            raise ValueError(
                f"Expected a batch of {wanted.type} and shape {tuple(wanted.shape)} but got {x.dtype} and "
                f"{tuple(x.shape)}: {reason(error)}"
            ) from None
        return torch.from_numpy(logits)

    def __deepcopy__(self, memo: dict[int, Any]) -> LoadedOnnx:
        return LoadedOnnx(self._session)  # it has no state that a copy could change


class Traced(nn.Module):
    """A net and the prediction of its method as one module with one argument, for the exporter.

    Args:
        net: the sub-model.
        predict: the prediction of its method.
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
    """Suppress the prints, logs and warnings of the exporter, which are meant for its developers."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _names_files(data: bytes) -> bool:
    """Return whether a model has tensors in other files, or may have: only the package ``onnx`` can tell."""
    if importlib.util.find_spec("onnx") is None:
        return True
    import onnx

    try:
        messages = [onnx.load_model_from_string(data)]
    except Exception:  # onnx and its protobuf raise many kinds of errors
        return True
    while messages:
        message = messages.pop()
        if isinstance(message, onnx.TensorProto) and message.external_data:
            return True
        messages += _inner(message)
    return False


def _strip(message: Any) -> None:
    """Remove descriptions from a protobuf message and its nested messages."""
    for name in DESCRIPTIONS:
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for part in _inner(message):
        _strip(part)


def _inner(message: Any) -> list[Any]:
    """Return the messages that are values of a protobuf message."""
    fields = [value for field, value in message.ListFields() if field.message_type is not None]
    return [part for value in fields for part in (value if hasattr(value, "__len__") else [value])]
