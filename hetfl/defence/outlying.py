r"""Refuses static batch-norm sums that cannot be true, or that lie far outside those of the other clients.

A client reports per norm layer the sums over its batches of batch mean and batch variance of every channel. The sums of
a cohort are added up, so one client could move a channel arbitrarily far. Two rules prevent this.

**Ranges** (:mod:`hetfl.defence.ranges`), for each client separately: of mean and variance of each channel, and of the
number of batches. A layer that a forward pass calls c times has c times as many batches; c is the median over the
cohort.

**Far outside**, in a cohort of at least :data:`FEWEST` clients. With :math:`\mu_{kc}` and :math:`\sigma_{kc}` mean and
standard deviation of channel c at client k, and med the median over the clients, client k is left out if for a channel
of a layer

.. math::
    |\mu_{kc} - \operatorname{med}_c \mu| > F s_c \quad\text{or}\quad
    |\sigma_{kc} - \operatorname{med}_c \sigma| > F s_c, \qquad
    s_c^2 = \max\Bigl(r_c, \tfrac{1}{C} \sum_{c'} r_{c'}\Bigr), \qquad
    r_c = \operatorname{med}_c(\mu^2 + \sigma^2)

:math:`s_c` is the root mean square of the channel's activations at a typical client, or of the layer's if that is
larger. The usual scale, the median absolute deviation, does not work here: if only one class excites a channel, an
honest client with this class deviates by thousands of median absolute deviations, but by less than :math:`s_c`. With
clients of one class each, honest deviations stay below :math:`s_c`; F is :data:`FACTOR`. Medians are robust as long as
fewer than half of the cohort are hostile. A hostile client within the rule moves a channel by at most :math:`F s_c`
divided by the number of clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hetfl.defence.ranges import statistics_ranges

FEWEST = 3
"""Least number of clients in a cohort: of two that differ, it is unknown which one is wrong."""
FACTOR = 5.0
"""F: largest distance of a client's channel from the median, in units of :math:`s_c`."""


Refusals = dict[int, str]
"""By position of a client in its cohort, the reason why its sums are left out."""


def refusals(layers: Mapping[str, int], vectors: Sequence[Tensor], batches: Sequence[int]) -> Refusals:
    """Return the clients of a cohort whose sums are left out, with the reasons.

    Args:
        layers: number of channels of every static norm layer by name, in the order of the vectors.
        vectors: per client the sums, in the form of :func:`hetfl.local.jobs.statistics`.
        batches: per client the batches of one pass over its data.
    """
    sums_SV = torch.stack([vector.detach().cpu().double() for vector in vectors])
    batches_S = torch.tensor(batches, dtype=torch.float64)
    lengths = [2 * channels + 1 for channels in layers.values()]
    refused: Refusals = {}
    for check in (_out_of_range, _far_outside):
        kept = torch.tensor([row for row in range(len(vectors)) if row not in refused], dtype=torch.int64)
        for name, layer_SV in zip(layers, sums_SV[kept].split(lengths, dim=1), strict=True):
            for row, reason in check(layer_SV, batches_S[kept]).items():
                refused.setdefault(int(kept[row]), f"{reason} of layer {name}")
    return refused


def _out_of_range(sums_SV: Tensor, batches_S: Tensor) -> Refusals:
    """Return the clients with a number of a layer that is out of its range.

    Args:
        sums_SV: per client the sums of C means and of C variances, and the number of batches.
        batches_S: batches of one pass.
    """
    if not len(sums_SV):
        return {}
    count_S = sums_SV[:, -1]
    calls = float((count_S / batches_S).nanmedian())
    refused: Refusals = {}
    for row, (count, once) in enumerate(zip(count_S.tolist(), batches_S.tolist(), strict=True)):
        if not (calls >= 1 and count == calls * once):
            refused[row] = f"Expected {max(calls, 1.0) * once:g} batches but got {count:g}"
    mean_SC, variance_SC = (sums_SV[:, :-1] / count_S[:, None]).chunk(2, dim=1)
    for values_SC, range in zip((mean_SC, variance_SC), statistics_ranges().values(), strict=True):
        wrong_SC = ~((values_SC >= range.low) & (values_SC <= range.high))
        for row, reason in _first(wrong_SC, values_SC, str(range)).items():
            refused.setdefault(row, reason)
    return refused


def _far_outside(sums_SV: Tensor, batches_S: Tensor) -> Refusals:
    """Return the clients with a channel far outside the cohort's values; see the module's docstring."""
    if len(sums_SV) < FEWEST:
        return {}
    mean_SC, variance_SC = (sums_SV[:, :-1] / sums_SV[:, -1:]).chunk(2, dim=1)
    moment_C = (mean_SC.square() + variance_SC).median(dim=0).values
    scale_C = moment_C.clamp(min=float(moment_C.mean())).sqrt()
    refused: Refusals = {}
    for values_SC, quantity in ((mean_SC, "mean"), (variance_SC.sqrt(), "standard deviation")):
        median_C = values_SC.median(dim=0).values
        wrong_SC = (values_SC - median_C).abs() > FACTOR * scale_C
        limits = f"a {quantity} within {FACTOR:g} typical activations of the cohort's median"
        for row, reason in _first(wrong_SC, values_SC, limits).items():
            refused.setdefault(row, reason)
    return refused


def _first(wrong_SC: Tensor, values_SC: Tensor, wanted: str) -> Refusals:
    """Return, for each client with a wrong channel, text about its first one."""
    refused: Refusals = {}
    for row in wrong_SC.any(dim=1).nonzero().flatten().tolist():
        channel = int(wrong_SC[row].nonzero()[0])
        refused[row] = f"Expected {wanted} but got {float(values_SC[row, channel]):g} in channel {channel}"
    return refused
