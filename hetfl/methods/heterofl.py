"""HeteroFL: clients train the leading channels of the global model.

Diao, Ding, Tarokh: HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous Clients,
ICLR 2021 (arXiv 2010.01264).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.levels.budgets import Budgets
from hetfl.models.static_batch_norm import gathering
from hetfl.objectives import Objective
from hetfl.part import Part
from hetfl.tree import cast
from hetfl.types import Level, NetFactory


class HeteroFL(FederatedModule):
    r"""Width-scaled sub-models, each entry averaged over its holders (section 3, algorithm 1).

    A client of width :math:`\rho` trains the first :math:`\lceil \rho C \rceil` channels of every hidden layer. The
    Scaler and the static batch norm are layers of the net. The method adds two rules about labels:

    - masked cross-entropy: logits of classes that a client does not own are replaced by 0 in its local loss;
    - a client sends, and counts as a holder of, only the classifier rows of the classes that it owns, and likewise
      only those rows of the tensors in ``label_rows``.

    ``label_rules: false`` switches both off, for objectives without labels, such as regression.

    The mean is unweighted, as in the paper; ``aggregator: hetfl.aggregators.SampleMean`` weights it by samples.

    Args:
        net: builds the net of a level.
        levels: the levels by name, the widest first, or budgets; None: five widths from 1 to 1/16.
        label_rules: whether to apply the two rules about labels.
        label_rows: patterns of the names of further tensors with a row per label, such as the embedding of tokens in a
            language model, ``["embedding.token.weight"]``. Rows behind those of the labels, such as that of the masked
            token, are never sent, as in the authors' code.
        settings: the other arguments of :class:`~hetfl.FederatedModule`.

    Raises:
        ConfigurationError: ``label_rows`` is given but the rules about labels are off.
    """

    default_levels: ClassVar[Mapping[str, Level]] = {
        name: Level(name, width) for name, width in zip("abcde", (1.0, 0.5, 0.25, 0.125, 0.0625), strict=True)
    }

    without_labels: ClassVar[str] = ": set label_rules to false"

    def __init__(
        self,
        net: NetFactory,
        levels: dict[str, Level] | Budgets | None = None,
        label_rules: bool = True,
        label_rows: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        super().__init__(net, levels, **settings)
        if label_rows and not label_rules:
            raise ConfigurationError(f"Expected label_rules true with label_rows {list(label_rows)} but got false")
        self.label_rules, self.label_rows = label_rules, tuple(label_rows)

    @property
    def needs_labels(self) -> bool:
        """Whether the rules about labels are on."""
        return self.label_rules

    def restrict(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the logits with 0 (not minus infinity) at classes that the client does not own."""
        return logits.masked_fill(~labels, 0.0) if self.label_rules else logits

    def sent(self, part: Part, level: str, round: int, client: int) -> Part:
        """Return the client's part without the rows of labels that it does not own."""
        sent, labels = super().sent(part, level, round, client), self.data.labels(client)
        if not self.label_rules or bool(labels.all()):
            return sent
        return sent.derived(labels.numpy().tobytes(), lambda: sent.rows(self.tensors_by_label, labels))

    def check_objective(self, objective: Objective) -> None:
        """Refuse an objective without labels, and ``label_rows`` that do not fit the net and the data.

        Raises:
            ConfigurationError: a pattern matches no tensor, or one that has fewer rows than there are labels.
        """
        super().check_objective(objective)
        labels, tensors = self.data.num_classes, self.models.tensors[0]
        for pattern in self.label_rows:
            rows = {tensors[name].shape[:1].numel() for name in self._matching([pattern])}
            if min(rows, default=0) < labels:
                got = f"tensors of {sorted(rows)} rows" if rows else "no tensor"
                raise ConfigurationError(
                    f"Expected label_rows to match tensors of at least {labels} rows, one per label, but got {got} for "
                    f"{pattern!r}"
                )

    def _matching(self, patterns: Sequence[str]) -> frozenset[str]:
        return frozenset(name for name in self.models.trained for each in patterns if fnmatchcase(name, each))

    @cached_property
    def tensors_by_label(self) -> frozenset[str]:
        """Names of the tensors with a row per label: those of the classifier, and those that ``label_rows`` matches."""
        return self.classifier | self.levels.copies.with_copies(self._matching(self.label_rows))

    @cached_property
    def classifier(self) -> frozenset[str]:
        """Names of the tensors with a row per class: those of the layer whose output is the logits.

        Raises:
            ConfigurationError: no layer's output is the logits.
        """
        net = copy.deepcopy(self.net).float().cpu()
        outputs: dict[str, Tensor] = {}
        for name, layer in net.named_modules():
            if isinstance(getattr(layer, "weight", None), nn.Parameter):
                layer.register_forward_hook(lambda _, inputs, output, name=name: outputs.update({name: output}))
        with torch.no_grad(), gathering(net):
            logits = net(cast(self.data.first(2)[0], torch.float32))
        for name, output in reversed(outputs.items()):
            if output.numel() == logits.numel() and torch.equal(output.flatten(), logits.flatten()):
                layer = net.get_submodule(name)
                own = (layer.weight, getattr(layer, "bias", None))  # a tied tensor may have another layer's name
                names = {name for name, each in net.named_parameters() if any(each is tensor for tensor in own)}
                return self.levels.copies.with_copies(names & self.models.trained)
        raise ConfigurationError(
            "Expected a net whose last layer gives the logits, with a row of weights per class, but got none"
        )
