"""The names of low-rank factors of weights, and their products.

An adapted layer has a factor A of shape (R, ...in) and a factor B of shape (...out, R), whose product of shape (...out,
...in) is added to the layer's weight (Hu et al.: LoRA, ICLR 2022, arXiv 2106.09685). A rank is the leading rows of A
and the leading columns of B.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

A, B = "lora_A", "lora_B"
"""The last part of the names of the two factors."""


def pairs_of(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return by name of an adapted layer the names of its factors, in the order of the names.

    >>> pairs_of(["body.lora_A", "body.lora_B", "head.weight"])
    {'body': ('body.lora_A', 'body.lora_B')}
    """
    names = list(names)
    layers = [name.rpartition(".")[0] for name in names if name.rpartition(".")[2] == B]
    pairs = {layer: (f"{layer}.{A}" if layer else A, f"{layer}.{B}" if layer else B) for layer in layers}
    return {layer: pair for layer, pair in pairs.items() if pair[0] in names}


def matrices(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors as matrices A (R, in) and B (out, R)."""
    return a.flatten(1), b.flatten(0, -2)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of two factors, shape (...out, ...in)."""
    a_RI, b_OR = matrices(a, b)
    return (b_OR @ a_RI).view(*b.shape[:-1], *a.shape[1:])


def product_norm(a: Tensor, b: Tensor) -> float:
    r"""Return the Frobenius norm of BA from the R x R Gram matrices, without the product.

    .. math:: \lVert BA \rVert_F = \sqrt{\textstyle\sum (B^\top B) \circ (A A^\top)}
    """
    a_RI, b_OR = (each.double() for each in matrices(a, b))
    return float(((b_OR.T @ b_OR) * (a_RI @ a_RI.T)).sum().clamp(min=0.0).sqrt())


def refactored(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    r"""Return the best factors of a rank of the product BA: :math:`B = U \Sigma`, :math:`A = V^\top`.

    The singular value decomposition is that of an r x r matrix, r the number of rows of A, between the two factors of a
    QR decomposition. Singular values fall, so the leading rows and columns are the best factors of every smaller rank.
    The sign of each singular vector is such that the largest entry of a row of A is positive.

    Args:
        a: the factor A, or several stacked ones, shape (r, in).
        b: the factor B, shape (out, r).
        rank: the number of rows of the new A.

    Returns:
        A of shape (rank, in) and B of shape (out, rank), in the dtype of the inputs. Rows of A are orthonormal, also
        those beyond the rank of the product, whose columns of B are 0: factors that are both 0 have no gradient. Only
        rows beyond the rank that any product of its shape can have are 0.
    """
    left_OQ, upper_QR = torch.linalg.qr(b.double())
    right_IP, lower_PR = torch.linalg.qr(a.double().T)
    u_QS, sigma_S, vt_SP = torch.linalg.svd(upper_QR @ lower_PR.T)
    kept = min(rank, len(sigma_S))
    new_a = a.new_zeros(rank, a.shape[1], dtype=torch.float64)
    new_b = b.new_zeros(len(b), rank, dtype=torch.float64)
    rows_SI = vt_SP[:kept] @ right_IP.T
    signs_S = torch.gather(rows_SI, 1, rows_SI.abs().argmax(1, keepdim=True)).sign().squeeze(1)
    new_a[:kept] = rows_SI * signs_S[:, None]
    able = min(rank, len(b), a.shape[1])
    new_a[kept:able] = torch.linalg.qr(new_a[:able].T).Q.T[kept:]  # QR extends orthonormal columns and zeros to a basis
    new_b[:, :kept] = (left_OQ @ u_QS[:, :kept]) * (sigma_S[:kept] * signs_S)
    return new_a.to(a), new_b.to(b)


def allocated(spectra: dict[str, list[float]], costs: dict[str, float], budget: float) -> dict[str, int]:
    r"""Return the rank of each layer within a budget; the next rank is always the one with the most energy per cost.

    The next rank j of layer l has :math:`\sigma_{l,j}^2 / c_l`. Ranks that the rest of the budget does not cover are
    passed over; of equal ratios the first name in alphabetical order gets its rank first (FedHera, ICML 2026).

    Args:
        spectra: the singular values of each layer's product, falling.
        costs: the cost of one rank of each layer, such as its bytes.
        budget: the most that all ranks may cost.

    >>> allocated({"a": [3, 2, 1], "b": [4, 1, 0.5]}, {"a": 1, "b": 2}, 5)
    {'a': 3, 'b': 1}
    """
    ranks, rest = dict.fromkeys(spectra, 0), budget
    while True:
        open_ = [name for name in sorted(spectra) if ranks[name] < len(spectra[name]) and costs[name] <= rest]
        if not open_:
            return ranks
        best = max(open_, key=lambda name: spectra[name][ranks[name]] ** 2 / costs[name])
        ranks[best] += 1
        rest -= costs[best]
