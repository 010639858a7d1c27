"""Low-rank adapters beside a frozen net: LoRA on any net, nets of ``transformers``, and adapters of ``peft``."""

from hetfl.lora.adapters import adapted_layers, merge
from hetfl.lora.net import LoRA

__all__ = ["LoRA", "adapted_layers", "merge"]
