"""Send matrices as products of two thin ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hetfl.compression.base import Compressor, Context
from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.seeding import generator as named_generator
from hetfl.types import Report
from hetfl.updates import LowRankUpdate, Update, matrix_shape

ORTHONORMAL = 0.1
"""A left factor P with a Frobenius norm of PᵀP − I of at most this counts as orthonormal, as float16 rounds it."""


class LowRank(Compressor):
    r"""Send every tensor M, seen as a matrix (n, m), as :math:`\hat P Q^\top` of rank r.

    .. math:: P = M Q_0, \quad \hat P = \mathrm{orth}(P), \quad Q = M^\top \hat P

    one step of subspace iteration from Q_0, which the server shares with all clients: random at first, then, with
    ``warm_start``, the mean of the Q of the clients of the round before (a client at a small level takes its leading
    rows). Without a warm start Q_0 stays as it was drawn. orth is the QR decomposition whose R has no negative diagonal
    entry. It is unique, so that clients with a common right factor send the same Q, and the mean keeps it. With
    ``steps=None`` the product is the best of rank r, by the singular value decomposition (the principal components of
    M). Tensors that would not shrink by ``min_reduction`` are sent as they are.

    Vogels et al., PowerSGD, NeurIPS 2019, arXiv 1905.13727; there P and Q are averaged over all workers, here each
    client sends its own pair. Meant for error feedback: C is a contraction.

    Args:
        rank: r, at least 1.
        steps: of subspace iteration, at least 1; None: the singular value decomposition.
        warm_start: begin with the last round's Q.
        min_reduction: least ratio of a tensor's entries to those of its factors, above 0.

    Raises:
        ConfigurationError: a setting is out of range.
    """

    sparse = False

    def __init__(
        self, rank: int = 2, steps: int | None = 1, warm_start: bool = True, min_reduction: float = 2.0
    ) -> None:
        if not 1 <= rank < 2**16:
            raise ConfigurationError(f"Expected rank in 1..{2**16 - 1} but got {rank}")
        if steps is not None and steps < 1:
            raise ConfigurationError(f"Expected steps of at least 1, or null for the exact best, but got {steps}")
        if not 0 < min_reduction < math.inf:
            raise ConfigurationError(f"Expected a finite min_reduction above 0 but got {min_reduction}")
        self.rank, self.steps, self.warm_start, self.min_reduction = rank, steps, warm_start, min_reduction
        self._starts: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}

    def rank_of(self, shape: tuple[int, ...]) -> int:
        """Return the rank at which a tensor is sent; 0: as it is."""
        rows, columns = matrix_shape(shape)
        rank = min(self.rank, rows, columns)
        return rank if rank and rank * (rows + columns) * self.min_reduction <= rows * columns else 0

    def shared_bytes(self, layout: Layout) -> int:
        """Return the bytes of Q_0 that a client is sent: float32; a Q_0 that is drawn from its name costs none."""
        return 4 * sum(
            self.rank_of(shape) * matrix_shape(shape)[1]
            for name, shape in layout.shapes.items()
            if name in self._starts
        )

    @property
    def needs_shapes(self) -> bool:  # noqa: D102
        return True

    def apply(self, p_D: Tensor, context: Context) -> LowRankUpdate:  # noqa: D102
        layout = context.layout or Layout({"vector": (p_D.numel(),)})
        ranks, values = [], [p_D.new_empty(0)]
        for name, part in layout.views(p_D).items():
            rank = self.rank_of(tuple(part.shape))
            ranks.append(rank)
            values += (
                [part.flatten()] if not rank else self._factors(name, part.reshape(matrix_shape(part.shape)), rank)
            )
        return LowRankUpdate(torch.cat(values), layout, tuple(ranks))

    def _factors(self, name: str, matrix_nm: Tensor, rank: int) -> list[Tensor]:
        """Return the two factors, flat, by rows; magnitudes are scaled to 1 meanwhile, so that no square overflows."""
        scale = matrix_nm.abs().max()
        matrix_nm = matrix_nm / scale if scale > 0 else matrix_nm
        if self.steps is None:
            left, singular, right = torch.linalg.svd(matrix_nm, full_matrices=False)
            left_nr, right_mr = left[:, :rank], right[:rank].T * singular[:rank]
        else:
            right_mr = self._start(name, matrix_nm.shape[1], rank).to(matrix_nm)
            for _ in range(self.steps):
                left_nr = _orthonormal(matrix_nm @ right_mr)
                right_mr = matrix_nm.T @ left_nr
        return [left_nr.flatten(), (right_mr * scale).flatten()]

    def _start(self, name: str, rows: int, rank: int) -> Tensor:
        """Return Q_0, shape (m, r), of norm 1: the shared one; what it lacks is drawn from the tensor's name."""
        start = torch.randn(rank, rows, generator=named_generator(0, "low rank", name), dtype=torch.float64).T
        shared = self._starts.get(name, start)[:rows, :rank]
        if not bool(shared.any()):
            shared = start[: shared.shape[0], : shared.shape[1]]
        start = start / start.norm()
        start[: shared.shape[0], : shared.shape[1]] = shared / shared.norm()
        return torch.as_tensor(start)

    def observe(self, update: Update, layout: Layout | None = None, report: Report | None = None) -> None:  # noqa: D102
        if not self.warm_start or self.steps is None or not isinstance(update, LowRankUpdate):
            return
        parts = update.values.split(update.lengths(update.layout, update.ranks))
        for (name, shape), rank, part in zip(update.layout.shapes.items(), update.ranks, parts, strict=True):
            if rank and (most := self.rank_of(shape)):
                rows, columns = matrix_shape(shape)
                left, right = part.double().cpu().split([rows * rank, columns * rank])
                right_mr = _right(left.view(rows, rank), right.view(columns, rank))
                self._sums[name] = _added(self._sums.get(name), right_mr[:, :most])

    def end_round(self) -> None:  # noqa: D102
        # Only the directions matter: the mean and the sum are one.
        self._starts.update({name: total for name, total in self._sums.items() if bool(total.any())})
        self._sums = {}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"starts": dict(self._starts), "sums": dict(self._sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self._starts, self._sums = dict(state["starts"]), dict(state["sums"])


def _orthonormal(matrix_nr: Tensor) -> Tensor:
    """Return Q of the QR decomposition whose R has no negative entry on its diagonal.

    LAPACK chooses signs by the first row, so that two clients with P and -P would get the same Q and send opposite
    right factors, which cancel in the mean that the next round starts from.
    """
    orthonormal_nr, triangular_rr = torch.linalg.qr(matrix_nr)
    return torch.where(triangular_rr.diagonal() < 0, -orthonormal_nr, orthonormal_nr)


def _right(left_nr: Tensor, right_mr: Tensor) -> Tensor:
    """Return the right factor of a product whose left factor is made orthonormal; that of an honest client as it is.

    Its norm is then that of the product, which the server's bounds see. The columns of a client's left factor need
    not be orthonormal: the product may be 0 with a right factor of any size.
    """
    gram_rr = left_nr.T @ left_nr
    if float((gram_rr - torch.eye(len(gram_rr), dtype=gram_rr.dtype)).norm()) <= ORTHONORMAL:
        return right_mr
    return right_mr @ (_orthonormal(left_nr).T @ left_nr).T


def _added(total: Tensor | None, part_mr: Tensor) -> Tensor:
    """Return the sum of two matrices of which one may be the leading block of the other's shape."""
    if total is None:
        return part_mr.clone()
    shape = [max(sizes) for sizes in zip(total.shape, part_mr.shape, strict=True)]
    grown = total.new_zeros(shape)
    grown[: total.shape[0], : total.shape[1]] += total
    grown[: part_mr.shape[0], : part_mr.shape[1]] += part_mr
    return grown
