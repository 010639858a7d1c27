"""Quantisation of the sub-models that clients download."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch
from torch import Tensor

from hetfl.compression import DynamicRange, Quantiser
from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.part import Part
from hetfl.piece import described, settings_of
from hetfl.rotation import MOST_LOG, Rotation
from hetfl.seeding import derive
from hetfl.updates import DenseUpdate
from hetfl.wire import encode_submodel


class Downlink:
    r"""Send the tensors of a sub-model as codes of a few bits; clients begin at the decoded values.

    The server keeps the global model θ as it is. In a round the clients of a part train from

    .. math:: \hat\theta = R^{-1} Q(R \, \theta[\text{part}])

    with Q the quantiser and R a rotation, or the identity; their deltas are measured from it. With a stochastic
    quantiser it is unbiased, :math:`E \hat\theta = \theta[\text{part}]`. Losses and the sums of static batch norm are
    computed with :math:`\hat\theta`, too. A part of one version of a model is encoded once,
    so all clients that hold it begin at the same values.

    Quantisation of what clients are sent, after a rotation: Caldas et al., Expanding the Reach of Federated Learning,
    2018, arXiv 1812.07210. That paper also drops channels; that is a part rule here, ``hetfl.parts.RandomChannels``.

    Args:
        quantiser: Q; default: ``DynamicRange(bits=8, bucket=512, stochastic=True)``.
        rotate: spread large entries over their block by a randomised Hadamard rotation, by a new seed for every
            message; a quantiser's bucket is then best as large as a block.
        block: entries of a block of the rotation, a power of two.
        statistics: the quantiser of the values with which clients gather the sums of static batch norm; None: Q. The
            server uses the sums with θ, whose activations are others: narrow sub-models need more bits here.
        exact: names or patterns of tensors that are not coded; None: those with fewer than two dimensions, such as
            biases and the scales of norm layers. Buffers, frozen and personal tensors are never coded.

    Raises:
        ConfigurationError: ``block`` is no power of two from 2 to 2^30, or a quantiser cannot code values near 0.
    """

    def __init__(
        self,
        quantiser: Quantiser | None = None,
        rotate: bool = False,
        block: int = 512,
        statistics: Quantiser | None = None,
        exact: list[str] | None = None,
    ) -> None:
        if block.bit_count() != 1 or not 2 <= block <= 1 << MOST_LOG:
            raise ConfigurationError(
                f"Expected block to be a power of two from 2 to 2^{MOST_LOG} for Downlink but got {block}"
            )
        for given in (quantiser, statistics):
            if given is not None and not given.dense:
                raise ConfigurationError(f"Expected {type(given).__name__} with a span for Downlink but got it without")
        self.quantiser = quantiser or DynamicRange(bits=8, bucket=512, stochastic=True)
        self.rotate, self.block, self.statistics = rotate, block, statistics
        self.exact = None if exact is None else list(exact)

    def coded(self, part: Part) -> frozenset[str]:
        """Return the names of the tensors of a part that are coded if they are trained and not personal."""
        if self.exact is None:
            return frozenset(name for name, entry in part.items() if len(entry) > 1)
        return frozenset(name for name in part if not any(fnmatchcase(name, pattern) for pattern in self.exact))

    def encode(
        self,
        values_D: Tensor,
        layout: Layout,
        exact: Tensor,
        *,
        round: int,
        model: int,
        seed: int,
        statistics: bool = False,
    ) -> bytes:
        """Return the bytes of a sub-model.

        Args:
            values_D: coded entries, finite, on the CPU, shape (D,).
            layout: their tensors.
            exact: the other entries, float32 or float64.
            round: the round's number.
            model: number of the global model.
            seed: of this message alone, 63 bits.
            statistics: whether it is for static batch norm's sums.
        """
        rotation, update = None, DenseUpdate(values_D)
        if self.rotate:
            rotation = Rotation(self.block.bit_length() - 1, derive(seed, "rotation"))
            update = DenseUpdate(rotation.turned(values_D, layout.sizes))
        quantiser = self.statistics if statistics and self.statistics is not None else self.quantiser
        coded = quantiser.quantised(update, layout, torch.Generator().manual_seed(seed)).with_exact(exact)
        assert isinstance(coded, DenseUpdate)
        return encode_submodel(coded, rotation, round=round, model=model)

    @property
    def words(self) -> str:
        """How values are coded, in words."""
        rotated = " after a rotation" if self.rotate else ""
        return f"{type(self.quantiser).__name__} of {self.quantiser.bits} bits{rotated}"

    def describe(self) -> str:
        """Return the downlink with its settings in short text, by which a checkpoint and nodes know it again."""
        return described(type(self).__name__, settings_of(self))
