"""What the compared runs were: data, clients, method, nets, compressor, seeds, version, date, command, machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hetfl.report.checks import rounds_done
from hetfl.report.document import Fact, Facts
from hetfl.report.groups import Group
from hetfl.report.spread import span
from hetfl.runs.about import About

LONGEST = 160
"""Maximum number of characters of a setting; the rest is cut."""
MOST = 3
"""Maximum number of versions, commands and machines that are listed."""
PLAIN = "the default"
"""Text of a setting that is null, where nothing better is known."""


def facts(groups: Sequence[Group]) -> Facts:
    """Return what the runs were, a line per question; groups with the same answer share it."""
    answers: dict[str, Callable[[Group], str]] = {
        "data": _data,
        "clients": _clients,
        "partition": lambda group: _setting(group, "data.partitioner", "IID, or the clients of the data"),
        "method": _method,
        "nets": lambda group: _setting(group, "model.net"),
        "levels": _levels,
        "fleet": _fleet,
        "compressor": _compressor,
        "seeds": lambda group: ", ".join(group.seeds),
        "rounds": _rounds,
    }
    abouts = [run.about for group in groups for run in group.runs]
    known = {
        "version": _known(each.version for each in abouts),
        "date": _dates(abouts),
        "command": _known(each.command for each in abouts),
        "machine": _known(each.machine for each in abouts),
    }
    shared = [Fact(name, {"": text}) for name, text in known.items()]
    return Facts([*(_fact(name, groups, answer) for name, answer in answers.items()), *shared])


def _fact(name: str, groups: Sequence[Group], answer: Callable[[Group], str]) -> Fact:
    values = {group.name: answer(group) for group in groups}
    if len(set(values.values())) == 1:
        return Fact(name, {"": next(iter(values.values()))})
    return Fact(name, values)


def brief(value: Any) -> str:
    """Return a setting as short text: classes by their names, arguments that are not null.

    >>> brief({"class_path": "hetfl.data.Dirichlet", "init_args": {"beta": 0.5, "min_size": None}})
    'Dirichlet(beta=0.5)'
    >>> brief([1, {"class_path": "torch.optim.SGD"}]), brief(None)
    ('[1, SGD]', 'none')
    """
    text = _text(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _text(value: Any) -> str:
    if isinstance(value, Mapping) and "class_path" in value:
        name = str(value["class_path"]).rpartition(".")[2]
        given = {key: each for key, each in (value.get("init_args") or {}).items() if each is not None}
        arguments = ", ".join(f"{key}={_text(each)}" for key, each in given.items())
        return f"{name}({arguments})" if arguments else name
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_text(each)}" for key, each in value.items() if each is not None)
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return "none" if value is None else str(value)


def _at(group: Group, path: str) -> Any:
    """Return a setting by its dotted name; None if it is null or missing."""
    value: Any = group.runs[0].config
    for key in path.split("."):
        if isinstance(value, Mapping) and "class_path" in value:
            value = value.get("init_args") or {}
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _setting(group: Group, path: str, default: str = PLAIN) -> str:
    value = _at(group, path)
    if not group.runs[0].config:
        return "unknown"
    return default if value is None else brief(value)


def _data(group: Group) -> str:
    about, name = group.runs[0].about, _class_of(group, "data")
    counts = {"training": about.train_samples, "validation": about.val_samples, "test": about.test_samples}
    known = [f"{count:,} {kind}" for kind, count in counts.items() if count is not None]
    samples = f": {', '.join(known)} samples" if known else ""
    return f"{name}{samples}{f', {about.classes} classes' if about.classes else ''}"


def _class_of(group: Group, key: str) -> str:
    value = group.runs[0].config.get(key)
    return brief(_name_of(value)) if value else "unknown"


def _name_of(value: Any) -> str:
    """Return the name of a class or function that a setting names, by a text or by ``class_path``."""
    path = value.get("class_path") if isinstance(value, Mapping) else value
    return str(path).rpartition(".")[2]


def _clients(group: Group) -> str:
    tables = [run.clients for run in group.runs if run.clients is not None]
    number = len(tables[0]) if tables else _at(group, "data.num_clients")
    cohort, epochs, batch = (
        _at(group, path)
        for path in ("model.selection.clients_per_round", "model.local.epochs", "model.local.batch_size")
    )
    parts = [f"{number} clients" if number is not None else "", f"{cohort} a round" if cohort is not None else ""]
    if epochs is not None:
        parts.append(f"each trains {epochs} epoch{'s' * (epochs != 1)} in batches of {batch}")
    if (optimizer := _at(group, "model.local.optimizer")) is not None:
        used = {key: _at(group, f"model.local.optimizer.{key}") for key in ("lr", "momentum", "weight_decay")}
        shown = [f"{key.replace('_', ' ')} {value}" for key, value in used.items() if value]
        parts.append(", ".join([_name_of(optimizer), *shown]))
    return ", ".join(filter(None, parts)) or "unknown"


def _method(group: Group) -> str:
    name = _class_of(group, "model")
    rules = {key: _at(group, f"model.{key}") for key in ("parts", "aggregator", "schedule", "selection", "clustering")}
    shown = [f"{key} {brief(value)}" for key, value in rules.items() if isinstance(value, dict)]
    return brief(", ".join([name, *shown]))


def _levels(group: Group) -> str:
    for run in group.runs:
        if run.level_table is not None:
            table = run.level_table
            sizes = zip(table["level"], table["parameters"] * table["density"], strict=True)
            return brief(", ".join(f"{level}: {round(size):,} parameters" for level, size in sizes))
    return ", ".join(level for level in group.runs[0].levels) or "unknown"


def _fleet(group: Group) -> str:
    devices = _setting(group, "model.fleet", "all devices are the same")
    assignment = _at(group, "model.assignment")
    return devices if assignment is None else f"{devices}; levels by {brief(assignment)}"


def _compressor(group: Group) -> str:
    up = _setting(group, "model.uplink.compressor", "none")
    halves = ", values as float16" if _at(group, "model.uplink.half_precision") else ""
    down = _at(group, "model.downlink")
    return f"{up}{halves}{'' if down is None else f'; downloads: {brief(down)}'}"


def _rounds(group: Group) -> str:
    done = [rounds_done(run) for run in group.runs]
    return span(str(min(done)), str(max(done)))


def _dates(abouts: Sequence[About]) -> str:
    starts = sorted(each.started for each in abouts if each.started)
    return " to ".join(dict.fromkeys((starts[0], starts[-1]))) if starts else "unknown"


def _known(texts: Iterable[str]) -> str:
    """Return the different texts, at most :data:`MOST`, or that they are unknown."""
    different = list(dict.fromkeys(filter(None, texts)))
    more = [f"{len(different) - MOST} more"] if len(different) > MOST else []
    return "; ".join([*different[:MOST], *more]) or "unknown"


def missing_runs(groups: Sequence[Group]) -> list[str]:
    """Return a sentence per group that lacks a seed of another group.

    Groups without a configuration have no seeds, and are left out.
    """
    known = [group for group in groups if group.settings]
    seeds = list(dict.fromkeys(seed for group in known for seed in group.seeds))
    sentences = []
    for group in known:
        if lacking := [seed for seed in seeds if seed not in group.seeds]:
            sentences.append(f"There is no run of {group.name} with seed {', '.join(lacking)}.")
    return sentences
