"""Low-rank adapters beside a frozen net: LoRA on any net, nets of ``transformers``, and adapters of ``peft``."""

from hetfl.lora.adapters import adapted_layers, merge
from hetfl.lora.net import LoRA
from hetfl.lora.transformers_net import TransformersNet

__all__ = ["LoRA", "TransformersNet", "adapted_layers", "merge"]
