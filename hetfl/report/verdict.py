"""The answer of a report in a few sentences: which group leads at which size, by how much, and what it uploads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from hetfl.report.matching import LevelRow, level_sizes
from hetfl.report.material import Material
from hetfl.report.series import BYTES, DENSITY, GLOBAL, ROUNDS, Cost, curve, final_amount
from hetfl.report.spread import FEW, Spread, spread_of
from hetfl.report.trade_off import front_of, points_of
from hetfl.report.wording import listed

RULE = (
    "A group leads if its worst seed is better than the best seed of every other group; with {few} seeds or more, if "
    "mean ± one standard deviation do not overlap. Otherwise, and with a single seed, groups are not told apart."
)
"""The rule by which groups are told apart."""
MOST = 3
"""Maximum number of groups that a sentence names."""
FRACTIONS = {
    1.0: "the whole size",
    3 / 4: "three quarters of the size",
    1 / 2: "half of the size",
    1 / 3: "a third of the size",
    1 / 4: "a quarter of the size",
    1 / 5: "a fifth of the size",
    1 / 8: "an eighth of the size",
    1 / 10: "a tenth of the size",
    1 / 16: "a sixteenth of the size",
    1 / 20: "a twentieth of the size",
}


@dataclass(frozen=True)
class Outcome:
    """The comparison of the groups at the levels of a row.

    Attributes:
        row: the levels.
        results: the scores by group, the best mean first; at least two.
        leader: the group that is told apart from all others as better; None: no group is.
        near: the groups that are not told apart from the best mean, without it.
    """

    row: LevelRow
    results: Mapping[str, Spread]
    leader: str | None
    near: tuple[str, ...]

    @property
    def best(self) -> str:
        """The group with the best mean."""
        return next(iter(self.results))

    @property
    def kind(self) -> tuple[str, frozenset[str], tuple[str, ...]]:
        """What makes outcomes alike: who leads, who is not told apart, and whom several lead."""
        behind = tuple(self.behind)
        return (self.best if behind else "", frozenset([self.best, *self.near]), behind if self.near else ())

    @property
    def behind(self) -> list[str]:
        """The groups that are told apart from the best mean."""
        return [name for name in self.results if name != self.best and name not in self.near]


def outcomes_of(material: Material) -> list[Outcome]:
    """Return the comparison of every row of levels that at least two groups have, the largest first."""
    sign = -1.0 if material.headline.higher_is_better else 1.0
    outcomes = []
    for row in material.rows:
        scores = material.scores(row)
        if len(scores) < 2:
            continue
        results = dict(sorted(scores.items(), key=lambda item: sign * item[1].mean))
        (best, spread), *others = results.items()
        near = tuple(name for name, other in others if not spread.beats(other, material.headline))
        outcomes.append(Outcome(row, results, None if near else best, near))
    return outcomes


def verdict(material: Material) -> list[str]:
    """Return the answer of a report in sentences, the most important first."""
    if len(material.groups) < 2:
        return [*_alone(material), *_uploads(material)]
    outcomes = outcomes_of(material)
    if not outcomes:
        return ["No level of one group has nearly the size of a level of another group, so no two are compared."]
    if all(spread.n < 2 for outcome in outcomes for spread in outcome.results.values()):
        return [*_single_seeds(material, outcomes[0]), *_uploads(material)]
    alike = [list(each) for _, each in groupby(outcomes, key=lambda outcome: outcome.kind)]
    alike.sort(key=lambda each: each[0].leader is None)  # where groups are told apart comes first
    return [*(_sentence(material, each, every=len(outcomes)) for each in alike), *_uploads(material)]


def _sentence(material: Material, outcomes: Sequence[Outcome], every: int) -> str:
    """Return a sentence on neighbouring rows with the same outcome."""
    first = outcomes[0]
    if first.leader is not None:
        gaps = [f"by {_gap(material, outcome)} at {_size(material, outcome.row)}" for outcome in outcomes]
        where = " at every size:" if len(outcomes) == every > 1 else ""
        return f"{first.leader} leads{where} {listed(gaps)}."
    tied = [group.name for group in material.groups if group.name in (first.best, *first.near)]
    names = listed(shortened(tied))
    rest = f"; {first.best} leads {listed(shortened(first.behind))}" if first.behind else ""
    sizes = listed([_size(material, outcome.row) for outcome in outcomes])
    scores = ""
    if len(outcomes) == 1:
        ordered = tied if len(tied) == 2 else (first.best, first.near[-1])
        means = [material.headline.shown(first.results[name].mean) for name in ordered]
        scores = f": {(' and ' if len(tied) == 2 else ' to ').join(means)}"
    where = "at any size" if len(outcomes) == every > 1 else f"at {sizes}"
    return f"{names} are not told apart {where}{scores}{rest}."


def _gap(material: Material, outcome: Outcome) -> str:
    """Return how far the best group is ahead of the next, with the name of the next if there are more."""
    best, second = list(outcome.results.values())[:2]
    over = f" over {outcome.behind[0]}, the next best," if len(outcome.results) > 2 else ""
    return f"{material.headline.difference(abs(best.mean - second.mean))}{over}"


def _size(material: Material, row: LevelRow) -> str:
    """Return the size of a row relative to the largest, with the names of its levels and its size."""
    share = share_of(material, row)
    if share is None:
        return f"level {row.name}"
    size = material.size_of(row, short=False)
    return f"{fraction(share)} (level {row.name}{f', {size}' if size else ''})"


def share_of(material: Material, row: LevelRow) -> float | None:
    """Return the mean size of a row divided by that of the largest row; None if sizes are unknown."""
    if material.matched_by is None:
        return None
    sizes = [_mean_size(material, each) for each in material.rows]
    return _mean_size(material, row) / max(sizes)


def _mean_size(material: Material, row: LevelRow) -> float:
    known = {group.name: level_sizes(group) or {} for group in material.groups}
    amounts = [known[group][level][str(material.matched_by)] for group, level in row.levels.items()]
    return sum(amounts) / len(amounts)


def fraction(share: float) -> str:
    """Return a share of the whole size in words.

    >>> fraction(1.0), fraction(0.13), fraction(0.37)
    ('the whole size', 'an eighth of the size', '37 % of the size')
    """
    near = min(FRACTIONS, key=lambda known: abs(known - share) / known)
    return FRACTIONS[near] if abs(near - share) <= 0.08 * near else f"{100 * share:.2g} % of the size"


def _alone(material: Material) -> list[str]:
    (group,) = material.groups
    reached = []
    for row in material.rows:
        spread = material.final(group, row.levels[group.name])
        if spread is not None:
            reached.append(f"{spread.shown(material.headline)} at {_size(material, row)}")
    return [f"{group.name} reaches {listed(reached)}."] if reached else []


def _single_seeds(material: Material, outcome: Outcome) -> list[str]:
    scores = [f"{name} has {material.headline.shown(spread.mean)}" for name, spread in outcome.results.items()]
    compared = " that is compared" if any(len(group.runs) > 1 for group in material.groups) else ""
    return [
        f"At {_size(material, outcome.row)}, {listed(shortened(scores))}.",
        f"There is one run of each group{compared}, so no group is told apart from another: run several seeds "
        "(--seeds 0 1 2).",
    ]


def _uploads(material: Material) -> list[str]:
    """Return a sentence on the bytes that a run of each group uploads."""
    means = {}
    for group in material.spending(BYTES):
        spread = spread_of([final_amount(run, BYTES.column) for run in group.runs])
        if spread is not None:
            means[group.name] = spread.mean
    if not means:
        return []
    if len(means) <= MOST:
        return [f"A run uploads {listed([f'{BYTES.write(mean)} with {name}' for name, mean in means.items()])}."]
    least, most = min(means, key=lambda name: means[name]), max(means, key=lambda name: means[name])
    return [f"A run uploads from {BYTES.write(means[least])} with {least} to {BYTES.write(means[most])} with {most}."]


def rule() -> str:
    """Return the rule by which groups are told apart."""
    return RULE.format(few=FEW)


def shortened(names: Sequence[str]) -> list[str]:
    """Return at most :data:`MOST` names, and how many more there are.

    >>> shortened(["a", "b", "c", "d", "e"]), shortened(["a", "b", "c"])
    (['a', 'b', '3 more'], ['a', 'b', 'c'])
    """
    return list(names) if len(names) <= MOST else [*names[: MOST - 1], f"{len(names) - MOST + 1} more"]


def ends_over(material: Material, cost: Cost) -> str:
    """Return what a figure of the score over a cost shows: the last scores and costs of the global models."""
    ends = []
    for group in material.spending(cost):
        spread = spread_of([curve(run, GLOBAL, cost)[1][-1] for run in group.runs])
        spent = spread_of([curve(run, GLOBAL, cost)[0][-1] for run in group.runs])
        if spread is not None and spent is not None:
            amount = f"{cost.write(spent.mean)}{' rounds' if cost is ROUNDS else ''}"
            ends.append(f"{group.name} ends at {material.headline.shown(spread.mean)} after {amount}")
    return f"Global model, means over seeds: {listed(ends)}." if ends else ""


def front_text(material: Material) -> str:
    """Return what the figure of the trade-off shows: the groups that no group with as few bytes surpasses."""
    front = front_of(material.headline, points_of(material))
    named = [
        f"{point.name} ({material.headline.shown(point.score.mean)} from {BYTES.write(point.spent.mean)})"
        for point in front
    ]
    return f"No group with as few bytes has a better mean than {listed(named)}." if named else ""


def clients_text(material: Material) -> str:
    """Return what the figure of the clients shows: the mean and the worst clients of each group."""
    headline, scores = material.headline, []
    for group in material.groups:
        columns = (headline.local("mean"), headline.local("worst10"))
        mean, worst = (spread_of([material.value(run, column) for run in group.runs]) for column in columns)
        if mean is not None and worst is not None:
            scores.append(f"{group.name} {headline.shown(mean.mean)} and {headline.shown(worst.mean)}")
    return f"Mean over clients and over the worst tenth, global model: {'; '.join(scores)}." if scores else ""


def density_text(material: Material) -> str:
    """Return what the figure of the density shows: the mean share of entries that each group sends in a round."""
    shares = []
    for group in material.groups:
        known = [run.series(DENSITY).mean() for run in group.runs if DENSITY in run.metrics.columns]
        if known:
            shares.append(f"{100 * sum(known) / len(known):.3g} % with {group.name}")
    return f"Entries sent in a round, mean: {listed(shares)}." if shares else ""
