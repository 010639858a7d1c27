"""The sentences of a report about its results and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hetfl.report.material import Material
from hetfl.report.spread import FEW, Spread, chance_apart
from hetfl.runs.headline import ACCURACY, Headline

LOOK_FOR = {
    "rounds": "Compare the right ends: the group whose thick line is {highest} is best, unless thin lines, its seeds, "
    "cross those of another group.",
    "bytes": "Compare the lines at the same {score}: the leftmost line needs the fewest uploaded bytes.",
    "flops": "Compare the lines at the same {score}: the leftmost line needs the least computation by all clients.",
    "seconds": "Compare the lines at the same {score}: the leftmost line needs the least simulated time. A round lasts "
    "as long as its slowest client, or until its deadline.",
    "size": "Compare the points of the same size: the group whose point is {higher} is better at that size, unless the "
    "bars, the spread over seeds, overlap.",
    "at_bytes": "Look for the groups on the dashed line: no other has a better {score} with as few bytes. Bars are "
    "the spread over seeds.",
    "density": "Look for lines that rise late: residuals of earlier rounds are sent then.",
    "heads": "Look at how far the shallow heads are {below} the deep ones, and whether they still {rise}.",
    "cluster_members": "Look for rows that change colour late: these clients are between two clusters. Grey: no "
    "cluster yet. The numbers of clusters have no meaning.",
    "cluster_score": "Look for a line that stays {low} or {falls}: such a cluster has few clients, or clients of "
    "different kinds.",
    "cluster_tree": "Look for the round of each fork and the numbers of clients: clusters of a late fork train for few "
    "rounds.",
    "values": "A line or a dot is a client. Look for lines that keep their order, and for rank correlations ρ near -1 "
    "with the noise. A measure may only follow the number of samples, or the labels.",
    "clients": "Look at the {bad_end}: if a line rises there, some clients have a bad {score}. A line that {even} "
    "means that all clients have a similar {score}.",
}
"""The text of each figure, by key; the words in braces depend on the headline."""

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
"""Words in texts if a higher score is better."""
FALLING = {
    "highest": "lowest",
    "higher": "lower",
    "lower": "higher",
    "below": "above",
    "rise": "fall",
    "low": "high",
    "falls": "rises",
    "bad_end": "right",
    "even": "rises steeply at the left",
}
"""Words in texts if a lower score is better."""


def words_of(headline: Headline) -> Mapping[str, str]:
    """Return the words in texts for a headline."""
    return {"score": headline.words, **(RISING if headline.higher_is_better else FALLING)}


def look_for(key: str, headline: Headline) -> str:
    """Return the text of a figure: what to look for.

    >>> look_for("heads", Headline("mae", higher_is_better=False, percent=False))
    'Look at how far the shallow heads are above the deep ones, and whether they still fall.'
    """
    return LOOK_FOR[key].format_map(words_of(headline))


def findings(material: Material) -> list[str]:
    """Return a text per row of levels: which group is best, and whether the spreads overlap."""
    texts = []
    for row in material.rows:
        size = material.size_of(row, short=False)
        texts.append(
            f"Level {row.name}{f', {size}' if size else ''}: {level_sentence(material.scores(row), material.headline)}"
        )
    return texts


def level_sentence(results: Mapping[str, Spread], headline: Headline = ACCURACY) -> str:
    """Return a comparison of the scores of groups in words.

    >>> level_sentence({"x": Spread(0.9, 0.88, 0.92, 2), "y": Spread(0.8, 0.79, 0.81, 2)})
    'x is highest with 90.00 % (88.00–92.00). y with 80.00 % (79.00–81.00) is lower, by 10.00 points.'
    >>> level_sentence({"x": Spread(0.9, 0.85, 0.95, 2), "y": Spread(0.89, 0.88, 0.90, 2)})
    'x with 90.00 % (85.00–95.00) and y with 89.00 % (88.00–90.00) cannot be distinguished: the spreads overlap.'
    >>> level_sentence({"x": Spread(0.9, 0.9, 0.9, 1), "y": Spread(0.8, 0.7, 0.9, 2)})
    'y has 80.00 % (70.00–90.00). There is only one run of x with 90.00 %, and so no spread to compare.'
    >>> level_sentence({"x": Spread(0.9, 0.9, 0.9, 1), "y": Spread(0.8, 0.8, 0.8, 1)})
    'x has 90.00 % and y has 80.00 %. There is only one run each.'
    """
    if not results:
        return f"no group has {headline.one} of this level."
    if len(results) == 1:
        return f"only {next(iter(results))} has such a level, so there is no comparison."
    sign = -1.0 if headline.higher_is_better else 1.0
    by_mean = sorted(results, key=lambda name: sign * results[name].mean)
    several = [name for name in by_mean if results[name].n > 1]
    if not several:
        scores = listed([f"{name} has {results[name].shown(headline)}" for name in by_mean])
        return f"{scores}. There is only one run each."
    alone = [f"{name} with {results[name].shown(headline)}" for name in by_mean if results[name].n == 1]
    among = " of those with several runs" if alone else ""
    sentences = _order({name: results[name] for name in several}, among, headline)
    if alone:
        each = " each" * (len(alone) > 1)
        sentences.append(f"There is only one run{each} of {listed(alone)}, and so no spread to compare.")
    return " ".join(sentences)


def _order(results: Mapping[str, Spread], among: str, headline: Headline) -> list[str]:
    """Return sentences on groups that all have a spread; the group with the best mean comes first."""
    shown = {name: spread.shown(headline) for name, spread in results.items()}
    if len(results) < 2:
        return [f"{name} has {text}." for name, text in shown.items()]
    words, (best, *others) = words_of(headline), results
    near = [name for name in others if not results[best].beats(results[name], headline)]
    figures = {name: f"{name} with {text}" for name, text in shown.items()}
    if not near:
        sentences = [f"{best} is {words['highest']}{among} with {shown[best]}."]
    elif len(near) == 1:
        sentences = [f"{figures[best]} and {figures[near[0]]} cannot be distinguished: the spreads overlap."]
    else:
        close = listed([figures[name] for name in near])
        sentences = [
            f"{figures[best]} has the {words['highest']} mean; {close} cannot be distinguished from it: the spreads "
            "overlap."
        ]
    for name in others:
        ahead = [other for other in results if results[other].beats(results[name], headline)]
        if ahead:
            than = "" if len(results) == 2 else f" than {listed(ahead)}"
            gap = headline.difference(abs(results[best].mean - results[name].mean))
            by = f", by {gap}" if ahead == [best] else ""
            sentences.append(f"{figures[name]} is {words['lower']}{than}{by}.")
    return sentences


def listed(names: Sequence[str]) -> str:
    """Return names as an enumeration.

    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def caution(material: Material) -> str | None:
    """Return a sentence on the chance that ranges of few seeds do not overlap; None without two groups of few seeds."""
    counts = sorted(len(group.runs) for group in material.groups if 1 < len(group.runs) < FEW)
    if len(counts) < 2:
        return None
    one, other = counts[:2]
    chance = chance_apart(one, other)
    return (
        f"Few seeds are weak evidence: the ranges of {one} and {other} runs of the same method would not overlap in "
        f"{100 * chance:.0f} % of comparisons, by chance alone."
    )
