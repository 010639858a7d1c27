"""A net whose weights are frozen, beside which adapters of a rank are trained."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn

from hetfl.arguments import choice
from hetfl.errors import ConfigurationError
from hetfl.lora.adapters import Scale, adapt, chosen_layers, merge, scale_of
from hetfl.lora.weights import load_weights
from hetfl.models.exits import exits_of
from hetfl.tree import Tree
from hetfl.types import NetFactory


class LoRA(nn.Module):
    r"""Any net with low-rank adapters: :math:`y = W x + s B A x`, with W frozen.

    Hu et al.: LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022 (arXiv 2106.09685).

    A is (R, in) and B (out, R). A level of rank r has the leading r rows of A and columns of B: a part of the global
    model, as a width is. All other parameters of the net are frozen, except those that ``trainable`` names. A is drawn
    as in a linear layer of A's shape, B is 0, so the net begins with the outputs of its base.

    With the scale ``global``, s is α/R at every level, and a level computes what the global net computes with its other
    ranks at 0. With ``local``, s is α/r: the same factors mean other products at each level, as in FedIT; it needs
    ``check_nesting: false``, and rules for products (``ProductMean``, ``FLoRA``) refuse it. ``rslora`` is α/√R at every
    level.

    Args:
        net: builds the base; it takes ``width``, and ``depth`` if levels have one.
        targets: patterns of the names of adapted layers, as :mod:`fnmatch` reads them, such as ``*attention.*``. Linear
            layers, convolutions without groups, and the projections ``qkv`` and ``out`` of hetfl's attention can be
            adapted, if no other layer has their weight and no parametrisation computes it.
        max_rank: R, the rank of the global model's adapters.
        alpha: α.
        scale: the factor s of the products.
        freeze: ``A``: only B is trained, and the mean of B over clients is that of the products (FFA-LoRA, Sun et al.,
            ICLR 2024); None: both are trained.
        trainable: patterns of names of other parameters that are trained whole, such as ``classifier.*``.
        weights: a safetensors file with the weights of the base, such as one of ``hetfl export``; None: those that its
            constructor makes. At a ``depth`` the file may have further stages.
        width: width ratio of the base, in (0, 1].
        depth: number of stages of the base; None: its default.
        rank: r; None: R.

    Raises:
        ConfigurationError: a rank is not in 1..R, α is not above 0, a pattern matches nothing, or the weights do not
            fit the net.
    """

    def __init__(
        self,
        net: NetFactory,
        targets: Sequence[str],
        max_rank: int = 8,
        alpha: float = 16.0,
        scale: Scale = "global",
        freeze: Literal["A"] | None = None,
        trainable: Sequence[str] = (),
        weights: str | None = None,
        width: float = 1.0,
        depth: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__()
        self.rank = max_rank if rank is None else rank
        if not 1 <= self.rank <= max_rank:
            raise ConfigurationError(f"Expected a rank from 1 to max_rank, {max_rank}, but got {self.rank}")
        if not alpha > 0:
            raise ConfigurationError(f"Expected alpha above 0 but got {alpha}")
        if freeze not in ("A", None):
            raise ConfigurationError(f"Expected freeze A or null but got {freeze!r}")
        self.scale = scale_of(choice("scale", scale, Scale), alpha, max_rank, self.rank)
        base = net(width=width) if depth is None else net(width=width, depth=depth)  # type: ignore[call-arg]
        if weights is not None:
            load_weights(base, weights, whole=depth is None)
        base.requires_grad_(False)
        self.net, self.freeze = base, freeze
        train_whole(base, trainable)
        for layer in chosen_layers(base, targets):
            adapt(base, layer, self.rank, self.scale, train_a=freeze is None)
        if (exits := exits_of(base)) is not None:
            self.exits = exits

    def forward(self, inputs: Tree) -> Tensor:
        """Return the outputs of the adapted net."""
        outputs: Tensor = self.net(inputs)
        return outputs

    def merged(self) -> nn.Module:
        """Return the base with the products added to its weights; the adapters are gone from this net, too."""
        return merge(self.net)


def train_whole(net: nn.Module, patterns: Sequence[str]) -> None:
    """Let the parameters whose names match patterns be trained.

    Raises:
        ConfigurationError: a pattern matches no parameter.
    """
    for pattern in patterns:
        matching = [parameter for name, parameter in net.named_parameters() if fnmatchcase(name, pattern)]
        if not matching:
            names = ", ".join(name for name, _ in net.named_parameters())
            raise ConfigurationError(f"Expected trainable to match parameters among {names:.300} but got {pattern!r}")
        for parameter in matching:
            parameter.requires_grad_(True)
