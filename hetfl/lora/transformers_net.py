"""Nets of Hugging Face ``transformers``, from a folder on disk."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hetfl.arguments import choice
from hetfl.errors import ConfigurationError
from hetfl.models.tokens import tokens_and_mask
from hetfl.tree import Tree

Head = Literal["sequence_classification", "causal_lm", "masked_lm", "image_classification"]
"""The task of a model, which is its ``AutoModelFor...`` class."""
CLASSES: dict[str, str] = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "image_classification": "AutoModelForImageClassification",
}


class TransformersNet(nn.Module):
    """A model of ``transformers`` from a folder, as a net: inputs are those of hetfl, outputs are logits.

    The folder is one that ``save_pretrained`` writes: ``config.json``, and weights as safetensors. Nothing is
    downloaded, and no code of the folder runs. The model has one size; adapters of :class:`hetfl.lora.LoRA` give it
    levels. Dropout is that of the configuration.

    Args:
        folder: the folder.
        head: the task.
        num_classes: outputs K of a classifier; if the folder's model has another number, its classifier begins anew.
            None: those of the folder's model.
        padding: the id of padding in token inputs without a mask; None: no padding.
        width: width ratio, which must be 1.

    Raises:
        ConfigurationError: ``transformers`` is missing, the folder has no such model, or the width is not 1.
    """

    def __init__(
        self,
        folder: str,
        head: Head = "sequence_classification",
        num_classes: int | None = None,
        padding: int | None = None,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if width != 1.0:
            raise ConfigurationError(
                f"Expected width 1 for a model of transformers but got {width}: use ranks as levels"
            )
        self.head, self.padding = choice("head", head, Head), padding
        self.model = _loaded(Path(folder), self.head, num_classes)

    def forward(self, inputs: Tree) -> Tensor:
        """Return the logits: (N, K), or (N, T, V) for a language model.

        Args:
            inputs: images (N, C, H, W), token ids (N, T), or a mapping of ``tokens`` and ``mask``, each (N, T).
        """
        if self.head == "image_classification":
            images: Tensor = self.model(pixel_values=inputs).logits
            return images
        tokens_NT, mask_NT = tokens_and_mask(inputs, self.padding)
        mask = torch.ones_like(tokens_NT) if mask_NT is None else mask_NT.long()
        logits: Tensor = self.model(input_ids=tokens_NT, attention_mask=mask).logits
        return logits


def _loaded(folder: Path, head: str, num_classes: int | None) -> nn.Module:
    try:
        transformers = import_module("transformers")
    except ImportError:
        raise ConfigurationError(
            "Expected the package transformers (TransformersNet) but it is not installed: pip install 'hetfl[llm]'"
        ) from None
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"Expected a folder with the config.json of a model of transformers but got {folder}")
    settings: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    if num_classes is not None:
        settings |= {"num_labels": num_classes, "ignore_mismatched_sizes": True}
    try:
        model: nn.Module = getattr(transformers, CLASSES[head]).from_pretrained(str(folder), **settings)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigurationError(f"Expected a model for {head} in {folder} but got: {reason}") from None
    return model.train()
