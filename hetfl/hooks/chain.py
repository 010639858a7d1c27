"""The hooks of a run, called in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hetfl.compression.base import Combine, apart
from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.finite import is_finite, require_finite
from hetfl.hooks.base import DeltaContext, Hook
from hetfl.layout import Index
from hetfl.part import Part
from hetfl.piece import Piece, unused
from hetfl.seeding import generator
from hetfl.types import Report, Task
from hetfl.updates import Update


class Hooks(Piece):
    """Calls the hooks of a run in their order.

    Each hook after the first is a piece of the run with the name ``hooks.<class>``; further hooks of the same class
    get ``_2``, ``_3`` and so on. This piece itself records their order in the fingerprint.

    Args:
        first: acts before all others: the penalty, which is registered as a piece elsewhere.
        others: the other hooks in their order.
    """

    def __init__(self, first: Hook, others: Sequence[Hook] = ()) -> None:
        self.first = first
        self.named: dict[str, Hook] = {}
        self._round = 0
        for hook in others:
            self.append(hook)

    def append(self, hook: Hook) -> None:
        """Add a hook that acts after all others.

        Raises:
            ConfigurationError: the object is no hook, or is already in the chain.
        """
        if not isinstance(hook, Hook):
            raise ConfigurationError(f"Expected a hook (hetfl.hooks.Hook) among hooks but got {type(hook).__name__}")
        if any(hook is other for other in self._all()):
            raise ConfigurationError(f"Expected every hook once among hooks but got one {type(hook).__name__} twice")
        self.named[unused(type(hook).__name__, self.named)] = hook

    def members(self) -> dict[str, Piece]:  # noqa: D102
        return dict(self.named)

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self._round = round

    def columns(self) -> dict[str, float]:
        """Return nothing: each hook is a piece and logs its columns itself.

        Raises:
            ConfigurationError: two hooks have a column of the same name, and do not add up.
        """
        owner: dict[str, str] = {}
        for name, hook in self.named.items():
            for column in hook.columns():
                other = owner.setdefault(column, name)
                if other != name and not (hook.adds_up and self.named[other].adds_up):
                    raise ConfigurationError(
                        f"Expected hooks with different columns but both {other} and {name} have {column}"
                    )
        return {}

    def totals(self) -> dict[str, float]:
        """Return the sums of the columns of all hooks whose columns add up."""
        counted = [hook.columns() for hook in self.named.values() if hook.adds_up]
        return {column: sum(each.get(column, 0.0) for each in counted) for columns in counted for column in columns}

    def describe(self) -> str:  # noqa: D102
        return ", ".join(name for name, hook in self.named.items() if hook.describe()) or "none"

    def combine(self, task: Task, part: Part, seed: int) -> Combine:
        """Return the function that combines a client's delta and residual before the compression.

        Args:
            task: the client's task.
            part: positions of the entries of p in the global model.
            seed: of every random choice.
        """
        hooks = {name: hook for name, hook in self._all_named() if type(hook).on_delta is not Hook.on_delta}
        if not hooks:
            return apart

        def changed(delta_D: Tensor, residual_D: Tensor | None) -> tuple[Tensor, None]:
            p_D = delta_D if residual_D is None else delta_D + residual_D
            for name, hook in hooks.items():
                random = generator(seed, f"hooks.{name}", task.round, task.owner)
                ctx = DeltaContext(task.client, task.level, task.round, task.lr, part, random)
                p_D = _finite(_alike(hook.on_delta(p_D, ctx), p_D, f"{name}.on_delta"), p_D, f"{name}.on_delta")
            return p_D, None

        return changed

    def on_update(self, update: Update, index: Index, report: Report) -> Update:
        """Return the update that is added up in place of a decoded one; see :meth:`Hook.on_update`.

        Raises:
            ConfigurationError: a hook returned something else than an update of the same size.
            RefusedUpdate: a hook refuses the update, or returned NaN or Inf.
        """
        for name, hook in self._all_named():
            changed = hook.on_update(update, index, report)
            if not isinstance(changed, Update):
                raise ConfigurationError(f"Expected an update from {name}.on_update but got {type(changed).__name__}")
            if changed is not update:
                where, given = f"{name}.on_update", update.to_dense()
                _finite(_alike(changed.to_dense(), given, where), given, where)
                _finite(_alike(changed.exact, update.exact, f"the exact block of {where}"), update.exact, where)
            update = changed
        return update

    def on_step(self, model: int, delta: dict[str, Tensor], holders: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the step that the server's optimizer takes; see :meth:`Hook.on_step`.

        Raises:
            ConfigurationError: a hook returned something else than finite steps of the same tensors.
        """
        for name, hook in self._all_named():
            changed = hook.on_step(model, delta, holders)
            if not isinstance(changed, Mapping) or changed.keys() != delta.keys():
                got = sorted(changed) if isinstance(changed, Mapping) else type(changed).__name__
                raise ConfigurationError(f"Expected steps of {sorted(delta)} from {name}.on_step but got {got}")
            new_steps = {tensor: step for tensor, step in changed.items() if step is not delta[tensor]}
            for tensor, step in new_steps.items():
                _alike(step, delta[tensor], f"{name}.on_step")
                new_steps[tensor] = torch.where(holders[tensor] > 0, step, delta[tensor])
            require_finite(new_steps, f"steps from {name}.on_step in round {self._round + 1}")
            delta = {**delta, **new_steps}
        return delta

    def regroup(self, clusters: Sequence[int]) -> None:
        """Pass every client's cluster in training on to all hooks."""
        for hook in self._all():
            hook.regroup(clusters)

    def _all(self) -> list[Hook]:
        return [self.first, *self.named.values()]

    def _all_named(self) -> list[tuple[str, Hook]]:
        return [(type(self.first).__name__, self.first), *self.named.items()]


def _alike(changed: Tensor, given: Tensor, where: str) -> Tensor:
    """Return a changed tensor, after a check.

    Raises:
        ConfigurationError: it is no tensor, or its shape or dtype is not that of the given tensor.
    """
    if not isinstance(changed, Tensor):
        raise ConfigurationError(f"Expected a tensor from {where} but got {type(changed).__name__}")
    if changed.shape != given.shape or changed.dtype != given.dtype:
        raise ConfigurationError(
            f"Expected {given.dtype} {tuple(given.shape)} from {where} but got {changed.dtype} {tuple(changed.shape)}"
        )
    return changed


def _finite(changed: Tensor, given: Tensor, where: str) -> Tensor:
    """Return a changed tensor, after a check; values that were not finite before are not the hook's.

    Raises:
        RefusedUpdate: a value is NaN or infinite, and all given values are finite.
    """
    if not is_finite(changed) and is_finite(given):
        raise RefusedUpdate(f"Expected finite values from {where} but got NaN or Inf")
    return changed
