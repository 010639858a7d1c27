"""What came out, in words: only what the numbers say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hetfl.report.material import Material
from hetfl.report.spread import FEW, Spread, chance_apart
from hetfl.runs.headline import ACCURACY, Headline

LOOK_FOR = {
    "rounds": "Look at the right end: which line is {highest}, and whether the bands overlap there. Where they do, the "
    "seeds do not tell the groups apart.",
    "bytes": "Look along one height: the line that gets there first, at the left, uploads the fewest bytes for that "
    "{score}.",
    "flops": "Look along one height: the line that gets there first needs the least computing by all clients for that "
    "{score}.",
    "seconds": "Look along one height: the line that gets there first would be done first on devices as the "
    "configuration says they are; a round lasts as long as its slowest client, or until its deadline.",
    "size": "Look at one size, up and down: the group whose point is {higher} makes more of models of that size, "
    "unless the bars, the spread over seeds, overlap.",
    "heads": "Look at how far the shallow heads are {below} the deep ones, and whether they still {rise}.",
    "cluster_members": "Look for rows that change colour late: clients between two clusters. Grey: no cluster yet. The "
    "number of a cluster means nothing.",
    "cluster_score": "Look for a line that stays {low} or {falls}: a cluster of few clients, or of two kinds of them.",
    "cluster_tree": "Look for when a line forks, and into how many clients: a fork late in the run leaves its parts "
    "little time.",
    "clients": "Look at the {bad_end}: a line that rises there has clients whom the model serves badly; one that "
    "{even} serves all alike.",
}
"""A sentence per picture, by its key; in braces what depends on the headline."""

RISING = {
    "highest": "highest",
    "higher": "higher",
    "lower": "lower",
    "below": "below",
    "rise": "rise",
    "low": "low",
    "falls": "falls",
    "bad_end": "left",
    "even": "stays low and then rises steeply",
}
"""What stands in texts in which the better score is the higher one, ..."""
FALLING = {
    "highest": "lowest",
    "higher": "lower",
    "lower": "higher",
    "below": "above",
    "rise": "fall",
    "low": "high",
    "falls": "rises",
    "bad_end": "right",
    "even": "rises steeply and is done early",
}
"""... and where it is the lower one."""


def words_of(headline: Headline) -> Mapping[str, str]:
    """Return what stands in texts on runs with a headline."""
    return {"score": headline.words, **(RISING if headline.higher_is_better else FALLING)}


def look_for(key: str, headline: Headline) -> str:
    """Return what to look for in a picture.

    >>> look_for("heads", Headline("mae", higher_is_better=False, percent=False))
    'Look at how far the shallow heads are above the deep ones, and whether they still fall.'
    """
    return LOOK_FOR[key].format_map(words_of(headline))


def findings(material: Material) -> list[str]:
    """Return a sentence or two per row of levels: who is best, and whether the spreads lie apart."""
    said = []
    for row in material.rows:
        results = {
            group.name: spread
            for group in material.groups
            if group.name in row.levels and (spread := material.final(group, row.levels[group.name])) is not None
        }
        size = material.size_of(row, short=False)
        said.append(f"Level {row.name}{f', {size}' if size else ''}: {level_sentence(results, material.headline)}")
    return said


def level_sentence(results: Mapping[str, Spread], headline: Headline = ACCURACY) -> str:
    """Return what scores of groups with their spreads say about each other.

    >>> level_sentence({"x": Spread(0.9, 0.88, 0.92, 2), "y": Spread(0.8, 0.79, 0.81, 2)})
    'x is highest with 90.00 % (88.00–92.00). y with 80.00 % (79.00–81.00) is lower, by 10.00 points.'
    >>> level_sentence({"x": Spread(0.9, 0.85, 0.95, 2), "y": Spread(0.89, 0.88, 0.90, 2)})
    'x with 90.00 % (85.00–95.00) and y with 89.00 % (88.00–90.00) are not told apart: the spreads overlap.'
    >>> level_sentence({"x": Spread(0.9, 0.9, 0.9, 1), "y": Spread(0.8, 0.7, 0.9, 2)})
    'y has 80.00 % (70.00–90.00). Of x with 90.00 % there is one run, and so no spread to compare by.'
    """
    if not results:
        return f"no group has {headline.one} of it."
    if len(results) == 1:
        return f"only {next(iter(results))} has such a level; there is nothing to compare it with."
    sign = -1.0 if headline.higher_is_better else 1.0
    by_mean = sorted(results, key=lambda name: sign * results[name].mean)
    several = [name for name in by_mean if results[name].n > 1]
    alone = [f"{name} with {results[name].shown(headline)}" for name in by_mean if results[name].n == 1]
    among = " of those with several runs" if alone else ""
    sentences = _order({name: results[name] for name in several}, among, headline)
    if alone:
        sentences.append(
            f"Of {_listed(alone)} there is one run{' each' * (len(alone) > 1)}, and so no spread to compare by."
        )
    return " ".join(sentences)


def _order(results: Mapping[str, Spread], among: str, headline: Headline) -> list[str]:
    """Return sentences on groups that all have a spread, the one with the best mean first."""
    shown = {name: spread.shown(headline) for name, spread in results.items()}
    if len(results) < 2:
        return [f"{name} has {text}." for name, text in shown.items()]
    words, (best, *others) = words_of(headline), results
    near = [name for name in others if not results[best].beats(results[name], headline)]
    figures = {name: f"{name} with {text}" for name, text in shown.items()}
    if not near:
        sentences = [f"{best} is {words['highest']}{among} with {shown[best]}."]
    elif len(near) == 1:
        sentences = [f"{figures[best]} and {figures[near[0]]} are not told apart: the spreads overlap."]
    else:
        close = _listed([figures[name] for name in near])
        sentences = [
            f"{figures[best]} has the {words['highest']} mean; {close} are not told apart from it: the spreads overlap."
        ]
    for name in others:
        ahead = [other for other in results if results[other].beats(results[name], headline)]
        if ahead:
            than = "" if len(results) == 2 else f" than {_listed(ahead)}"
            gap = headline.difference(abs(results[best].mean - results[name].mean))
            by = f", by {gap}" if ahead == [best] else ""
            sentences.append(f"{figures[name]} is {words['lower']}{than}{by}.")
    return sentences


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def caution(material: Material) -> str | None:
    """Return how often ranges of few seeds lie apart by chance alone; None where no two groups have such ranges."""
    counts = sorted(len(group.runs) for group in material.groups if 1 < len(group.runs) < FEW)
    if len(counts) < 2:
        return None
    one, other = counts[:2]
    chance = chance_apart(one, other)
    return (
        f"Few seeds say little: if two groups of {one} and of {other} runs were of one and the same method, their "
        f"ranges would lie wholly apart in {100 * chance:.0f} % of comparisons, by chance alone."
    )
