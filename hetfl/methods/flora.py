"""FLoRA: the factors of all clients are stacked and merged into the base, and every round begins with new ones.

Wang, Shen, He, Sun, Wang, Lyu, Li: FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
Adaptations, NeurIPS 2024 (arXiv 2409.05976).
"""

from __future__ import annotations

from typing import Any

from hetfl.aggregators import Aggregator, StackedProducts
from hetfl.aggregators.stacked_products import Target
from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.levels.budgets import Budgets
from hetfl.levels.sizes import make_net
from hetfl.lora import adapted_layers
from hetfl.lora.adapters import is_transposed, scale_at, weight_name
from hetfl.types import Level, NetFactory


class FLoRA(FederatedModule):
    r"""Stacking: the base takes the mean of the clients' products, of any ranks, without cross terms.

    .. math:: W \leftarrow W + s \sum_k p_k B_k A_k, \qquad
        \sum_k p_k B_k A_k = [B_1, B_2, \dots] \, [p_1 A_1; p_2 A_2; \dots]

    Clients merge the same stack, so a client downloads the stacked factors of every round since it was sent the last
    ones, or the changed weights if these are fewer bytes. The next round begins with a new A, drawn from the seed,
    and B = 0; clients could draw A themselves, but are sent it here. The base changes: it must be ``preinstalled``, so
    that its first download is not counted twice. Residuals and memories, which would belong to factors that are gone,
    are refused, as are levels with several factors s, and schedules in which clients begin with older models. The mean
    is exact if downloads and uploads are; with a lossy ``downlink`` the server's factors stand for the clients'.

    Args:
        net: builds the net of a level, :class:`hetfl.lora.LoRA`.
        levels: the levels by name, the largest first.
        settings: the other arguments of :class:`~hetfl.FederatedModule`, without ``aggregator``.

    Raises:
        ConfigurationError: the net has no adapters, the base is not preinstalled, or there is an aggregator.
    """

    def __init__(self, net: NetFactory, levels: dict[str, Level] | Budgets | None = None, **settings: Any) -> None:
        base, given = settings.get("base", "download"), settings.pop("aggregator", None)
        if base != "preinstalled" or given is not None:
            got = f"base {base}" if base != "preinstalled" else "an aggregator"
            raise ConfigurationError(f"Expected base preinstalled, and no aggregator, for FLoRA but got {got}")
        whole = make_net(net)
        targets = {
            name: Target(weight_name(whole, name), scale_at(layer), is_transposed(layer))
            for name, layer in adapted_layers(whole).items()
        }
        if not targets:
            raise ConfigurationError(f"Expected a net with adapters for FLoRA but got {type(whole).__name__}")
        rule: Aggregator = StackedProducts(targets)
        super().__init__(net, levels, aggregator=rule, **settings)  # jsonargparse reads the settings' types off this
