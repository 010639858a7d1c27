"""Texts as numbers: vocabularies, padding, samples of a language model, and how many of them are evaluated together."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from hetfl.data import TextFile, TextTable
from hetfl.data.loaders import MOST_OUTPUTS, EvalBatches
from hetfl.errors import ConfigurationError
from tests.data_cases import numbered, ready

TEXTS = ["the cat sat", "the dog sat", "the cat ran off", "a dog"]
ANIMALS = ["cat", "dog", "cat", "dog"]


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Return a file with five copies of each text: two writers have two texts each."""
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "animal", "writer"])
        for text, animal, writer_id in list(zip(TEXTS, ANIMALS, ["ann", "bob", "ann", "bob"], strict=True)) * 5:
            writer.writerow([text, animal, writer_id])
    return str(tmp_path / "texts.csv")


def text_table(path: str, **settings: Any) -> TextTable:
    given: dict[str, Any] = {"vocabulary": 7, "length": 3, "val_fraction": 0.0, "test_path": path, **settings}
    module = TextTable(path=path, text="text", target="animal", client="writer", **given)
    module.setup("fit")
    return module


def test_texts_of_a_table_are_tokens_of_the_commonest_words(table: str) -> None:
    """the: 15 times, cat, dog and sat: 10, the others 5 and unknown; texts are cut and filled up to three tokens."""
    module = text_table(table)
    assert module.client_names == ("ann", "bob")
    tokens = {"the": 2, "cat": 3, "dog": 4, "sat": 5, "a": 6}  # a before off and ran
    ann, bob = (module.client_data(client) for client in range(2))
    assert {tuple(row) for row in ann.inputs.tolist()} == {(2, tokens["cat"], tokens["sat"]), (2, tokens["cat"], 1)}
    assert {tuple(row) for row in bob.inputs.tolist()} == {(2, tokens["dog"], tokens["sat"]), (6, tokens["dog"], 0)}
    assert ann.inputs.dtype == torch.int64
    assert (set(ann.targets.tolist()), set(bob.targets.tolist())) == ({0}, {1})


def test_a_fraction_of_the_rows_of_a_table_is_the_test_set(table: str) -> None:
    module = text_table(table, test_path=None, test_fraction=0.25)
    assert sum(len(module.client_data(client).targets) for client in range(2)) == 15
    assert sum(len(module.client_data(client, "test").targets) for client in range(2)) == 5
    with pytest.raises(ConfigurationError, match=r"test_fraction in \(0, 1\), or test_path, but got 1.0"):
        text_table(table, test_path=None, test_fraction=1.0)


def text_file(folder: Path, words: str = "a b c d e f g h " * 10, **settings: Any) -> TextFile:
    for name in ("train.txt", "test.txt"):
        (folder / name).write_text(words)
    given: dict[str, Any] = {"vocabulary": 6, "length": 4, "num_clients": 2, "val_fraction": 0.0, **settings}
    module = TextFile(path=str(folder / "train.txt"), test_path=str(folder / "test.txt"), **given)
    module.setup("fit")
    return module


@pytest.mark.parametrize(("targets", "expected"), [("next", [3, 4, 5, -100]), ("same", [2, 3, 4, 5])])
def test_a_text_is_cut_into_samples_of_neighbouring_words(tmp_path: Path, targets: Any, expected: list[int]) -> None:
    """a to d have tokens 2 to 5, the others are unknown; unknown words are no targets. Client 0 has the first half."""
    module = text_file(tmp_path, targets=targets)
    first, second = (module.client_data(client) for client in range(2))
    assert first.inputs[:2].tolist() == [[2, 3, 4, 5], [1, 1, 1, 1]]
    assert first.targets[0].tolist() == expected
    assert first.targets[1].tolist() == ([-100] * 3 + [2] if targets == "next" else [-100] * 4)
    assert len(first) + len(second) == (80 - (targets == "next")) // 4
    assert abs(len(first) - len(second)) <= 1


def test_tokens_of_a_text_are_masked_where_they_are_the_targets(tmp_path: Path) -> None:
    module = text_file(tmp_path, targets="same")
    assert module.objective.headline.name == "masked_perplexity"
    inputs, targets = module.objective.trial(*module.first(1))
    assert inputs.tolist() == [[6] * 4]  # behind the vocabulary
    assert targets.tolist() == [[2, 3, 4, 5]]
    assert text_file(tmp_path).objective.headline.name == "perplexity"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "a length of at least 1 token but got 0"),
        ({"targets": "Next"}, "targets to be next or same but got 'Next'"),
        ({"vocabulary": 2}, "a vocabulary of at least 3 tokens but got 2"),
        ({"length": 50}, "at least 101 words in .*train.txt, 50 for each of 2 clients, but got 80"),
        ({"encoding": "klingon"}, "a text file in .*train.txt but got: unknown encoding: klingon"),
    ],
)
def test_texts_that_cannot_be_read_are_refused_in_one_line(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"Expected {message}") as error:
        text_file(tmp_path, **settings)
    assert "\n" not in str(error.value)


def batch_sizes(module: Any) -> list[int]:
    (loader,) = module.test_dataloader()
    assert isinstance(loader.dataset, EvalBatches)
    return [len(batch.targets) for batch in loader]


def test_an_evaluation_batch_of_texts_has_a_bound_of_outputs(tmp_path: Path) -> None:
    """4 tokens of 2^20 each: four samples have 2^24 outputs. A batch is never empty, nor larger than asked for."""
    assert MOST_OUTPUTS == 1 << 24
    assert batch_sizes(text_file(tmp_path, vocabulary=1 << 20)) == [4, 4, 4, 4, 3]
    assert batch_sizes(text_file(tmp_path, vocabulary=1 << 20, eval_batch_size=3)) == [3] * 6 + [1]
    assert batch_sizes(text_file(tmp_path, vocabulary=1 << 22, length=8)) == [1] * 9
    assert batch_sizes(text_file(tmp_path)) == [19]


def test_batches_of_other_data_are_as_large_as_asked_for() -> None:
    assert batch_sizes(ready(numbered(num_train=40, num_test=2500, num_clients=2))) == [1000, 1000, 500]
