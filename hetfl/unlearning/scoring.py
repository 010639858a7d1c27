"""The accuracy of a run's levels on each class."""

from __future__ import annotations

import torch
from torch import Tensor

from hetfl.federation import FederatedModule
from hetfl.tree import cast, moved


def class_accuracies(module: FederatedModule) -> dict[str, Tensor]:
    """Return by level the number of correct test samples and of all test samples of each class, float64, shape (K, 2).

    Args:
        module: in an evaluation, of which the statistics of norm layers are known.
    """
    data, like = module.data, module.models.like
    counts = {level: torch.zeros(data.num_classes, 2, dtype=torch.float64) for level in module.levels}
    for level, counts_K2 in counts.items():
        net = module.submodel(level)
        for loader in data.test_dataloader():
            for batch in loader:
                inputs = moved(cast(data.transform.eval(batch.inputs), like.dtype), like.device)
                with torch.no_grad(), module._precision_context():
                    predicted_N = module.predict(net, inputs).argmax(-1).cpu()
                hits_N2 = torch.stack([predicted_N == batch.targets, torch.ones_like(predicted_N)], dim=1)
                counts_K2.index_add_(0, batch.targets, hits_N2.double())
    return counts


def of_class(counts_K2: Tensor, forget: int) -> tuple[float, float]:
    """Return the accuracy on a class, and on all samples of the other classes; 0 without samples.

    Args:
        counts_K2: correct samples and all samples of each class, shape (K, 2).
        forget: the class.

    >>> of_class(torch.tensor([[3.0, 4.0], [1.0, 2.0], [5.0, 8.0]]), 1)
    (0.5, 0.6666666666666666)
    """
    mine_2 = counts_K2[forget]
    hits, all_of_them = (counts_K2.sum(0) - mine_2).tolist()
    return float(mine_2[0] / mine_2[1].clamp(min=1.0)), hits / max(all_of_them, 1.0)
