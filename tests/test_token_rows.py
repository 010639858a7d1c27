"""Texts in rows: WikiText-2 as it is published, and a text of a Markov chain."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hetfl.data import IID, MarkovText, WikiText2
from hetfl.errors import ConfigurationError
from hetfl.objectives import LanguageModelling
from hetfl.seeding import generator

LINES = [" \n", " = A <unk> b = \n", " \n", " b b c , c B \n"] * 12
WORDS = [word for line in LINES for word in (*line.split(), "<eos>")]


def wikitext(folder: Path, **settings: Any) -> WikiText2:
    """Return a module that reads a few lines in the format of the published files."""
    for name in ("wiki.train.tokens", "wiki.test.tokens"):
        (folder / name).write_text("".join(LINES), encoding="utf-8")
    given: dict[str, Any] = {"rows": 5, "test_rows": 2, "length": 4, "num_clients": 2, "val_fraction": 0.0, **settings}
    module = WikiText2(root=str(folder), **given)
    module.setup("fit")
    return module


def test_words_are_those_of_the_files_and_lines_end_with_a_word(tmp_path: Path) -> None:
    """Twelve times 15 words: <eos> 48, b 36, = and c 24, the others 12. Equal ones are in alphabetical order."""
    module = wikitext(tmp_path)
    assert module.num_classes == 8
    numbers = {word: n for n, word in enumerate(["<unk>", "<eos>", "b", "=", "c", ",", "A", "B"])}
    assert module.text().train.tolist() == [numbers[word] for word in WORDS]
    small = wikitext(tmp_path, vocabulary=4)
    assert small.num_classes == 4
    assert small.text().train.tolist() == [n if (n := numbers[word]) < 4 else 0 for word in WORDS]


@pytest.mark.parametrize("targets", ["next", "same"])
def test_a_client_has_whole_rows_in_samples_of_neighbouring_words(tmp_path: Path, targets: Any) -> None:
    """180 words in 5 rows of 36: nine samples of four words, or eight if the last word is only a target."""
    module, ahead = wikitext(tmp_path, targets=targets), targets == "next"
    tokens_RL = module.text().train.view(5, 36)
    rows = [[row[i : i + 4] for i in range(0, 36 - 3 - ahead, 4)] for row in tokens_RL]
    assert module.sizes == ((3 * len(rows[0])), 2 * len(rows[0]))
    data = [module.client_data(client) for client in range(2)]
    order = torch.randperm(5, generator=generator(module.seed, "rows")).tolist()
    expected = torch.stack([window for row in order[:3] for window in rows[row]])
    assert torch.equal(_sorted(data[0].inputs), _sorted(expected))
    joined = torch.cat([each.inputs for each in data]), torch.cat([each.targets for each in data])
    if ahead:
        assert torch.equal(joined[0][:, 1:], joined[1][:, :-1])
    else:
        assert torch.equal(*joined)
    assert len(module.resident.all_test) == 2 * ((90 - ahead) // 4)


def _sorted(rows_NT: Tensor) -> Tensor:
    return torch.tensor(sorted(rows_NT.tolist()))


def test_the_seed_draws_the_rows_and_a_partitioner_may_divide_the_samples(tmp_path: Path) -> None:
    first, same, other = (MarkovText(seed=seed) for seed in (0, 0, 1))
    for module in (first, same, other):
        module.setup()
    assert torch.equal(first.client_data(0).inputs, same.client_data(0).inputs)
    assert not torch.equal(first.client_data(0).inputs, other.client_data(0).inputs)
    apart = wikitext(tmp_path, partitioner=IID())
    assert apart.sizes == (20, 20)


def test_masked_tokens_are_the_default_where_targets_are_the_inputs(tmp_path: Path) -> None:
    """The token in place of a masked one is behind the vocabulary."""
    module = wikitext(tmp_path, targets="same")
    assert isinstance(module.objective, LanguageModelling)
    inputs, targets = module.objective.trial(*module.first(2))
    assert bool((inputs == 8).all())
    assert torch.equal(targets, module.first(2)[1])
    assert module.objective.headline.name == "masked_perplexity"
    assert wikitext(tmp_path).objective.headline.name == "perplexity"


def test_the_best_perplexity_of_a_markov_text_is_its_number_of_successors() -> None:
    """By the frequencies of tokens and of pairs in the text: V without the preceding token, S with it."""
    tokens = MarkovText(words=60_000).text().train
    pairs = (32 * tokens[:-1] + tokens[1:]).bincount(minlength=32 * 32).double().view(32, 32) / (len(tokens) - 1)
    assert (pairs > 0).sum(1).tolist() == [4] * 32
    single = pairs.sum(1)
    assert math.exp(-torch.xlogy(single, single).sum()) == pytest.approx(32, rel=0.01)
    both = -torch.xlogy(pairs, pairs).sum()
    assert math.exp(both + torch.xlogy(single, single).sum()) == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": "Same"}, "targets to be next or same but got 'Same'"),
        ({"length": 0}, "length of at least 1 but got 0"),
        ({"test_rows": 0}, "test_rows of at least 1 but got 0"),
        ({"num_clients": 6}, "rows for each client, but got 6 clients and 5 rows"),
        ({"num_clients": 0}, "at least one client.* but got 0 clients"),
        ({"length": 36}, "at least 185 tokens of training text, .* 36 in each of 5 rows, but got 180"),
        ({"test_rows": 60}, "at least 300 tokens of test text, .* 4 in each of 60 rows, but got 180"),
        ({"vocabulary": 1}, "a vocabulary of at least 2 tokens but got 1"),
        ({"train": "wiki.train.raw"}, "word-level files of WikiText-2 in .* but wiki.train.raw is missing: set root"),
    ],
)
def test_texts_that_cannot_be_read_or_cut_are_refused_in_one_line(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"Expected .*{message}") as error:
        wikitext(tmp_path, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("successors", "vocabulary"), [(0, 5), (5, 5)])
def test_successors_out_of_range_are_refused(successors: int, vocabulary: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"successors in 1\.\.4.* but got {successors}"):
        MarkovText(vocabulary=vocabulary, successors=successors)
