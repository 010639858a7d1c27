"""Other ways to compute a client's step, beside the present one: a compiler, another layout, matrices, bfloat16.

The step is a forward and a backward pass of a level's net on a batch, on one thread. The compiled net is measured warm;
what compiling takes is printed. All ways but bfloat16 are checked to give the same gradients.

Then two ways to gather static batch norm's statistics in a pass over a batch.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from timing import Row, interleaved, parser, report, rows, threads
from torch import Tensor, nn
from torch.nn import functional as F
from work import Setting

from hetfl.local.channels_last import channels_last
from hetfl.models.static_batch_norm import gathering, static_layers

Step = Callable[[], tuple[Tensor, ...]]


class ByMatrices(torch.autograd.Function):
    """A convolution of 3 x 3 pixels as products of matrices: every output pixel's inputs are a row."""

    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight: Tensor, bias_C: Tensor) -> Tensor:  # noqa: D102
        rows_PK = _rows(x_NCHW)
        ctx.save_for_backward(rows_PK, weight)
        return _images(torch.addmm(bias_C, rows_PK, _matrix(weight).t()), x_NCHW.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: D102
        (rows_PK, weight), (grad_NCHW,) = ctx.saved_tensors, grads
        grad_PC = grad_NCHW.movedim(1, -1).reshape(-1, grad_NCHW.shape[1])
        of_weight = (grad_PC.t() @ rows_PK).view(len(weight), *weight.shape[2:], weight.shape[1]).movedim(-1, 1)
        if not ctx.needs_input_grad[0]:
            return None, of_weight, grad_PC.sum(0)
        turned = _matrix(weight.flip(2, 3).transpose(0, 1))
        return _images(_rows(grad_NCHW) @ turned.t(), grad_NCHW.shape), of_weight, grad_PC.sum(0)


def _rows(x_NCHW: Tensor) -> Tensor:
    """Return the 9 C inputs of each pixel's output as a row, with zeros around the image, shape (N H W, 9 C)."""
    padded_NHWC = F.pad(x_NCHW.movedim(1, -1), (0, 0, 1, 1, 1, 1))
    return padded_NHWC.unfold(1, 3, 1).unfold(2, 3, 1).movedim(3, -1).reshape(-1, 9 * x_NCHW.shape[1])


def _matrix(weight: Tensor) -> Tensor:
    return weight.movedim(1, -1).reshape(len(weight), -1)


def _images(pixels_PC: Tensor, shape: torch.Size) -> Tensor:
    count, _, height, width = shape
    return pixels_PC.view(count, height, width, -1).movedim(-1, 1)


class MatrixConvolution(nn.Module):
    """A convolution that is computed by :class:`ByMatrices`, with the parameters of another."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the convolution, with images of the same size."""
        out: Tensor = ByMatrices.apply(x_NCHW, self.weight, self.bias)
        return out


def by_matrices(net: nn.Module) -> nn.Module:
    """Return a copy of a net whose convolutions are products of matrices."""
    copied = copy.deepcopy(net)
    for name, layer in list(copied.named_modules()):
        if isinstance(layer, nn.Conv2d):
            owner, _, leaf = name.rpartition(".")
            setattr(copied.get_submodule(owner), leaf, MatrixConvolution(layer))
    return copied


def steps(setting: Setting) -> dict[str, Step]:
    """Return the ways to compute the gradients of a level's net, the present one first; check that they are equal.

    Raises:
        RuntimeError: a gradient differs by more than rounding.
    """
    torch.manual_seed(0)
    net = setting.level_net(setting.levels).to(memory_format=torch.channels_last)
    plain_NCHW = torch.randn(setting.batch_size, setting.channels, setting.size, setting.size)
    inputs_NCHW, targets_N = channels_last(plain_NCHW), torch.randint(10, (setting.batch_size,))

    def gradients(forward: Callable[[Tensor], Tensor], net: nn.Module, inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.cross_entropy(forward(inputs), targets_N), list(net.parameters()))

    def rounded() -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            return gradients(net, net, inputs_NCHW)

    compiled, matrices = torch.compile(net), by_matrices(net)
    plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    made: dict[str, Step] = {
        "now: channels last": lambda: gradients(net, net, inputs_NCHW),
        "torch.compile": lambda: gradients(compiled, net, inputs_NCHW),
        "channels first": lambda: gradients(plain, plain, plain_NCHW),
        "convolutions as matrices": lambda: gradients(matrices, matrices, inputs_NCHW),
    }
    expected = made["now: channels last"]()
    for name, step in made.items():
        start = time.perf_counter()
        for gradient, expected_gradient in zip(step(), expected, strict=True):
            if not torch.allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-4):
                raise RuntimeError(f"Expected equal gradients from {name} but got others")
        if name == "torch.compile":
            print(f"Compiling level {setting.levels} takes {time.perf_counter() - start:.0f} s, less if it is cached.")
    return {**made, "bfloat16 (autocast), not the same numbers": rounded}


def passes(setting: Setting) -> dict[str, Callable[[], list[Tensor]]]:
    """Return the ways to gather the means and variances of all static norm layers, the present one first.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    net = setting.level_net(setting.levels).to(memory_format=torch.channels_last)
    inputs_NCHW = channels_last(torch.randn(setting.batch_size, setting.channels, setting.size, setting.size))

    @torch.no_grad()
    def by_the_norm() -> list[Tensor]:
        with gathering(net) as layers:
            net(inputs_NCHW)
            return [part for layer in layers.values() if (s := layer.sums) for part in (s.var_C, s.mean_C)]

    @torch.no_grad()
    def by_var_mean() -> list[Tensor]:
        statistics: list[Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(lambda _, args: statistics.extend(torch.var_mean(args[0], (0, 2, 3))))
            for layer in static_layers(net).values()
        ]
        by_the_norm()
        for hook in hooks:
            hook.remove()
        return statistics

    for one, other in zip(by_the_norm(), by_var_mean(), strict=True):
        if not torch.allclose(one, other, rtol=1e-4, atol=1e-5):
            raise RuntimeError("Expected equal statistics from both ways but got others")
    return {"now: by the pass that normalises": by_the_norm, "torch.var_mean before it": by_var_mean}


def ways(setting: Setting, blocks: int) -> list[Row]:
    """Return the times of a step, and of gathering statistics, by way."""
    with threads(1):
        trained = interleaved(steps(setting), blocks=blocks, warmup=3)
        gathered = interleaved(passes(setting), blocks=blocks, warmup=3)
    case = f"at level {setting.levels}, one thread"
    return [*rows(f"a step {case}", trained), *rows(f"gathering {case}", gathered)]


def main() -> None:
    """Run from the command line."""
    options = parser(__doc__, blocks=40)
    options.add_argument("--levels", default="abce", help="levels (default: %(default)s)")
    given = options.parse_args()
    report([row for level in given.levels for row in ways(Setting(level), given.blocks)], given.json)


if __name__ == "__main__":
    main()
