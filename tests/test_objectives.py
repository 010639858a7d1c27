"""Objectives: losses and scores against loops in NumPy and scikit-learn, and refused targets and settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, r2_score, top_k_accuracy_score
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.objectives import (
    Classification,
    ClientScores,
    LanguageModelling,
    LevelScores,
    MultiLabel,
    Objective,
    Regression,
)
from hetfl.testing import check_objective

SEEDS = st.integers(0, 10**6)


def logits_of(seed: int, *shape: int) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cross_entropy(logits: np.ndarray[Any, Any], target: int, smoothing: float = 0.0) -> float:
    log_p = logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())
    return float(-(1 - smoothing) * log_p[target] - smoothing * log_p.mean())


@given(SEEDS, st.integers(1, 7), st.sampled_from([None, (1.0, 0.5, 3.0, 0.2)]))
def test_cross_entropy_with_class_weights_is_a_weighted_mean(
    seed: int, samples: int, weights: Sequence[float] | None
) -> None:
    outputs = logits_of(seed, 3, samples, 4)
    targets = torch.randint(4, (3, samples), generator=torch.Generator().manual_seed(seed))
    objective = Classification(class_weights=weights)
    expected = []
    for logits_NK, targets_N in zip(outputs.numpy(), targets.tolist(), strict=True):
        each = [1.0 if weights is None else weights[target] for target in targets_N]
        losses = [w * cross_entropy(z, y) for z, y, w in zip(logits_NK, targets_N, each, strict=True)]
        expected.append(sum(losses) / sum(each))
    assert objective.loss(outputs, targets).tolist() == pytest.approx(expected, rel=1e-9)
    assert objective.loss(outputs[0], targets[0]).item() == pytest.approx(expected[0], rel=1e-9)
    heads = objective.per_exit(outputs.unsqueeze(1).expand(3, 2, samples, 4), targets)
    assert heads.shape == (3, 2)
    assert heads[:, 1].tolist() == pytest.approx(expected, rel=1e-9)


def test_label_smoothing_equals_a_mixture_with_the_uniform_distribution() -> None:
    outputs, targets = logits_of(0, 3, 5), torch.tensor([4, 0, 2])
    expected = [cross_entropy(z, y, 0.1) for z, y in zip(outputs.numpy(), targets.tolist(), strict=True)]
    assert Classification(label_smoothing=0.1).loss(outputs, targets).item() == pytest.approx(np.mean(expected))


@given(SEEDS, st.integers(1, 4))
def test_token_losses_ignore_padding(seed: int, samples: int) -> None:
    outputs = logits_of(seed, 2, samples, 3, 5)
    targets = torch.randint(-1, 5, (2, samples, 3), generator=torch.Generator().manual_seed(seed))
    objective = LanguageModelling(ignore=-1)
    expected = []
    for logits_NTV, targets_NT in zip(outputs.numpy(), targets.numpy(), strict=True):
        places = np.argwhere(targets_NT >= 0)
        losses = [cross_entropy(logits_NTV[n, t], targets_NT[n, t]) for n, t in places]
        expected.append(sum(losses) / max(1, len(losses)))
    assert objective.loss(outputs, targets).tolist() == pytest.approx(expected, rel=1e-9)
    assert objective.weight(targets[0]) == int((targets[0] >= 0).sum())


def test_multilabel_and_regression_losses_are_means_over_all_cells() -> None:
    outputs = logits_of(1, 2, 6, 3)
    present = (logits_of(2, 2, 6, 3) > 0).to(torch.uint8)
    p = 1 / (1 + np.exp(-outputs.numpy()))
    weights = np.array([1.0, 2.0, 0.5])
    cells = -(weights * present.numpy() * np.log(p) + (1 - present.numpy()) * np.log(1 - p))
    actual = MultiLabel(positive_weights=weights.tolist()).loss(outputs, present)
    assert actual.tolist() == pytest.approx(cells.mean((1, 2)).tolist())
    numbers = logits_of(3, 2, 6, 3)
    errors = outputs.numpy() - (numbers.numpy() - 10.0) / 4.0
    for objective, expected in (
        (Regression("mse", offset=10.0, scale=4.0), np.square(errors)),
        (Regression("l1", offset=10.0, scale=4.0), np.abs(errors)),
    ):
        assert objective.loss(outputs, numbers).tolist() == pytest.approx(expected.mean((1, 2)).tolist())


def by_hand(objective: Objective, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Return an objective's metrics from scikit-learn or a loop."""
    if isinstance(objective, Classification):
        guesses = outputs.argmax(-1)
        return {
            "accuracy": accuracy_score(targets, guesses),
            "top2_accuracy": top_k_accuracy_score(targets, outputs, k=2, labels=range(outputs.shape[-1])),
            "macro_f1": f1_score(targets, guesses, average="macro"),
        }
    if isinstance(objective, MultiLabel):
        guesses = outputs > 0
        return {
            "f1": f1_score(targets, guesses, average="micro", zero_division=1),
            "macro_f1": f1_score(targets, guesses, average="macro", zero_division=1),
            "exact_match": accuracy_score(targets, guesses),
        }
    if isinstance(objective, Regression):
        predicted = 10.0 + 4.0 * outputs
        return {"r2": r2_score(targets, predicted), "mae": mean_absolute_error(targets, predicted)}
    losses = [
        cross_entropy(outputs[n, t].numpy(), int(targets[n, t]))
        for n in range(len(targets))
        for t in range(targets.shape[1])
        if targets[n, t] >= 0
    ]
    return {"perplexity": math.exp(np.mean(losses))}


def samples_of(objective: Objective, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return outputs and targets."""
    random = torch.Generator().manual_seed(seed)
    if isinstance(objective, Classification):
        return logits_of(seed, count, 4), torch.randint(4, (count,), generator=random)
    if isinstance(objective, MultiLabel):
        return logits_of(seed, count, 3), torch.randint(2, (count, 3), generator=random).to(torch.uint8)
    if isinstance(objective, Regression):
        return logits_of(seed, count, 2), 10.0 + 4.0 * logits_of(seed + 1, count, 2)
    return logits_of(seed, count, 3, 4), torch.randint(-1, 4, (count, 3), generator=random)


OBJECTIVES = [
    Classification(top_k=2, macro_f1=True),
    Classification(top_k=2, headline="macro_f1"),
    MultiLabel(),
    Regression(offset=10.0, scale=4.0),
    Regression(offset=10.0, scale=4.0, headline="mae"),
    LanguageModelling(ignore=-1),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda each: f"{type(each).__name__}-{each.headline.name}")
def test_every_objective_fulfils_the_contract(objective: Objective) -> None:
    check_objective(objective, samples_of(objective, 12, 0)[1])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda each: f"{type(each).__name__}-{each.headline.name}")
@settings(max_examples=12)
@given(seed=SEEDS, count=st.integers(8, 30))
def test_metrics_equal_a_computation_by_hand(objective: Objective, seed: int, count: int) -> None:
    """Metrics of all samples in batches by torchmetrics, and of each client's samples by sums, equal those by hand."""
    outputs, targets = samples_of(objective, count, seed)
    size, name = outputs.shape[-1], objective.headline.name
    scores = LevelScores(["a", "b"], objective, size)
    for part in torch.arange(count).split(5):
        scores.update({"a": outputs[part], "b": -outputs[part]}, targets[part])
    actual = scores.compute("val")
    expected = by_hand(objective, outputs, targets)
    if isinstance(objective, Classification) and len(targets.unique()) == size:  # else scikit-learn knows fewer classes
        assert {key: actual[f"val/{key}"].item() for key in expected} == pytest.approx(expected, abs=1e-5)
    assert actual[f"val/{name}"].item() == pytest.approx(expected[name], rel=1e-5)
    assert actual[f"val/{name}_by_level/b"].item() == pytest.approx(
        by_hand(objective, -outputs, targets)[name], rel=1e-5
    )
    assert actual["val/loss"].item() == pytest.approx(objective.loss(outputs, targets).item(), rel=1e-5)

    clients, owner = ClientScores(3, objective), torch.arange(count) % 2  # the third client has no samples
    for part in torch.arange(count).split(7):
        clients.update(objective.sums(outputs[part], targets[part]), owner[part])
    each = [by_hand(objective, outputs[owner == k], targets[owner == k])[name] for k in (0, 1)]
    assert clients.per_client() == [pytest.approx(each[0], rel=1e-6), pytest.approx(each[1], rel=1e-6), None]
    figures = {column: value.item() for column, value in clients.compute().items()}
    worst = min(each) if objective.headline.higher_is_better else max(each)
    assert figures == {
        f"local/{name}_mean": pytest.approx(np.mean(each), rel=1e-6),
        f"local/{name}_by_samples": pytest.approx(expected[name], rel=1e-6),
        f"local/{name}_worst10": pytest.approx(worst, rel=1e-6),
        f"local/{name}_std": pytest.approx(np.std(each), abs=1e-6),
        f"local/{name}_var": pytest.approx(np.var(each), abs=1e-6),
    }


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda each: f"{type(each).__name__}-{each.headline.name}")
def test_nan_outputs_give_a_nan_score(objective: Objective) -> None:
    outputs, targets = samples_of(objective, 9, 0)
    targets = targets.clamp(min=0)
    outputs[4] = torch.nan
    scores = LevelScores(["a"], objective, outputs.shape[-1])
    scores.update({"a": outputs}, targets)
    assert all(value.isnan() for value in scores.compute("val").values())
    clients = ClientScores(2, objective)
    clients.update(objective.sums(outputs, targets), torch.tensor([0] * 6 + [1] * 3))
    assert math.isnan(clients.per_client()[0] or 0.0)
    assert not math.isnan(clients.per_client()[1] or math.nan)
    assert all(value.isnan() for name, value in clients.compute().items())


def test_owned_labels_are_the_labels_of_the_targets() -> None:
    assert Classification().label_counts(torch.tensor([2, 0, 2]), 4).tolist() == [1, 0, 2, 0]
    assert MultiLabel().label_counts(torch.tensor([[1, 0], [1, 0]], dtype=torch.uint8), 2).tolist() == [2, 0]
    assert LanguageModelling().label_counts(torch.tensor([[1, 1, -100]]), 3).tolist() == [0, 2, 0]
    assert Regression().label_counts(torch.zeros(5, 2), 2).tolist() == [5, 5]


def test_only_masked_tokens_are_predicted() -> None:
    tokens = torch.randint(9, (40, 25), generator=torch.Generator().manual_seed(0))
    objective = LanguageModelling(masked=0.3, mask_token=9)
    inputs, targets = objective.batch(tokens, tokens, torch.Generator().manual_seed(1))
    hidden = inputs == 9
    assert 0.25 < hidden.double().mean() < 0.35
    assert torch.equal(inputs[~hidden], tokens[~hidden])
    assert torch.equal(targets, torch.where(hidden, tokens, -100))
    whole = LanguageModelling(masked=0.3, mask_token=9, only_masked=False)
    named, all_of_them = whole.batch({"tokens": tokens}, tokens, torch.Generator().manual_seed(1))
    assert torch.equal(named["tokens"], inputs)
    assert torch.equal(all_of_them, tokens)


def test_a_net_that_sees_the_next_token_is_refused_only_where_it_must_predict_it() -> None:
    """The sum of the tokens so far is causal, the sum of all tokens is not."""

    def causal(tokens: Tensor) -> Tensor:
        return tokens.cumsum(1).unsqueeze(-1).float()

    def both(tokens: Tensor) -> Tensor:
        return tokens.sum(1).view(-1, 1, 1).expand(-1, 4, 1).float()

    text = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
    inputs, targets = text[:, :-1], text[:, 1:].clone()
    targets[0, 1] = -100
    plain, masked = LanguageModelling(), LanguageModelling(masked=0.3, mask_token=9)
    plain.check_predictions(causal, inputs, targets)
    masked.check_predictions(both, inputs, targets)
    plain.check_predictions(both, inputs, inputs)
    with pytest.raises(ConfigurationError, match="a causal net"):
        plain.check_predictions(both, inputs, targets)
    with pytest.raises(ConfigurationError, match="a causal net"):
        plain.check_predictions(lambda x: both(x["tokens"]), {"tokens": inputs}, targets)
    plain.check_predictions(lambda x: both(x["ids"]), {"ids": inputs}, targets)  # which input is shifted is unknown


def test_the_score_of_masked_tokens_is_not_called_a_perplexity_of_the_text() -> None:
    objective = LanguageModelling(masked=0.3, mask_token=4, only_masked=False)
    scores = LevelScores(["a"], objective, 4)
    scores.update({"a": torch.zeros(2, 3, 4)}, torch.ones(2, 3, dtype=torch.long))
    actual = scores.compute("val")
    assert actual["val/masked_perplexity"].item() == pytest.approx(4.0)
    assert "val/perplexity" not in actual
    assert not objective.headline.higher_is_better


@pytest.mark.parametrize(
    ("objective", "targets", "message"),
    [
        (Classification(), torch.zeros(3), "training targets as whole numbers .* Classification but got torch.float32"),
        (Classification(), torch.zeros(3, 2, dtype=torch.long), r"shape \(n,\) .* got torch.int64 of shape \(3, 2\)"),
        (Regression(), torch.zeros(3, dtype=torch.long), "as floats .* for Regression but got torch.int64"),
        (Regression(), torch.tensor([0.0, math.inf]), "finite training targets"),
        (MultiLabel(), torch.full((3, 2), 2), "0 or 1 of shape .* for MultiLabel but got torch.int64"),
        (LanguageModelling(), torch.zeros(3, dtype=torch.long), r"\(n, length\) for LanguageModelling but got"),
        (LanguageModelling(), torch.ones(2, 3, dtype=torch.bool), r"\(n, length\) for LanguageModelling but got"),
    ],
)
def test_targets_of_another_kind_of_objective_are_refused(objective: Objective, targets: Tensor, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        objective.prepared(targets, "training")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("objective", "targets", "message"),
    [
        (Classification(), torch.tensor([0, 4]), r"targets in \[0, 4\) but got 0 to 4"),
        (Classification(class_weights=[1.0, 2.0]), torch.tensor([0]), "class_weights for 4 classes.* got 2"),
        (Classification(top_k=4), torch.tensor([0]), "top_k below 4"),
        (MultiLabel(positive_weights=[1.0]), torch.zeros(1, 4), "positive_weights for 4 labels.* got 1"),
        (MultiLabel(), torch.zeros(1, 3), "of 4 labels but got 3"),
        (Regression(), torch.zeros(1, 3), "of 4 numbers but got 3"),
        (LanguageModelling(), torch.tensor([[4]]), r"in \[0, 4\) or -100 but got 4 to 4"),
        (LanguageModelling(), torch.tensor([[-100]]), "but got none that counts"),
    ],
)
def test_targets_that_the_outputs_cannot_predict_are_refused(
    objective: Objective, targets: Tensor, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        objective.check_size(targets, 4, "test")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classification(class_weights=[1.0, 0.0]), "class_weights above 0"),
        (lambda: Classification(label_smoothing=1.0), r"label_smoothing in \[0, 1\)"),
        (lambda: Classification(top_k=1), "top_k of at least 2"),
        (lambda: Classification(headline="f1"), "headline to be accuracy or macro_f1 but got 'f1'"),  # type: ignore[arg-type]
        (lambda: MultiLabel(positive_weights=[-1.0]), "positive_weights above 0"),
        (lambda: Regression(scale=0.0), "scale above 0"),
        (lambda: LanguageModelling(masked=1.0, mask_token=3), r"masked in \(0, 1\)"),
        (lambda: LanguageModelling(masked=0.1), "masked and mask_token together"),
        (lambda: LanguageModelling(ignore=0), "ignore below 0"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize(("middle", "spread"), [(1e5, 1.0), (0.0, 1e-4)])
def test_r2_is_exact_far_from_zero_and_for_small_numbers(middle: float, spread: float) -> None:
    targets = middle + spread * logits_of(0, 500, 1)
    outputs = 0.5 * (targets - middle)
    scores = LevelScores(["a"], Regression(offset=middle), 1)
    scores.update({"a": outputs}, targets)
    assert scores.compute("val")["val/r2"].item() == pytest.approx(r2_score(targets, middle + outputs), rel=1e-9)


def test_a_single_sample_has_no_r2_and_does_not_affect_other_clients() -> None:
    objective = Regression()
    scores = LevelScores(["a"], objective, 1)
    scores.update({"a": torch.zeros(1, 1)}, torch.ones(1, 1))
    actual = scores.compute("val")
    assert actual["val/r2"].isnan()
    assert actual["val/mae"] == 1.0
    clients = ClientScores(3, objective)
    targets = torch.tensor([[1.0], [2.0], [3.0], [5.0]])
    clients.update(objective.sums(torch.zeros(4, 1), targets), torch.tensor([0, 0, 0, 2]))
    expected = r2_score(targets[:3], torch.zeros(3))
    assert clients.per_client() == [pytest.approx(expected), None, None]
    assert clients.compute()["local/r2_mean"].item() == pytest.approx(expected)
    for _ in range(2):  # single samples of two evaluations must not be combined
        clients.update(objective.sums(torch.zeros(1, 1), torch.rand(1, 1)), torch.tensor([0]))
        assert clients.compute() == {}


def test_one_confident_mistake_gives_a_finite_perplexity() -> None:
    objective = LanguageModelling()
    outputs = torch.zeros(2, 3, 4)
    outputs[0, 0, 0] = 200.0
    targets = torch.ones(2, 3, dtype=torch.long)
    scores = LevelScores(["keys"], objective, 4)  # modules have an attribute of this level's name
    scores.update({"keys": outputs}, targets)
    actual = scores.compute("val")
    assert actual["val/perplexity"].item() == pytest.approx(math.exp(actual["val/loss"].item()), rel=1e-5)


def test_an_infinite_output_makes_the_loss_nan() -> None:
    scores = LevelScores(["a"], Classification(), 3)
    for value in (0.0, math.inf):
        scores.update({"a": torch.tensor([[value, 0.0, 0.0]])}, torch.tensor([0]))
    assert scores.compute("val")["val/loss"].isnan()


def test_targets_and_weights_are_not_rounded_to_bfloat16() -> None:
    outputs, targets = torch.full((3, 1), 302.0), torch.tensor([[301.0], [302.0], [303.0]])
    assert Regression().loss(outputs.bfloat16(), targets).item() == pytest.approx(2 / 3)
    logits, classes = torch.zeros(2, 5, 2).bfloat16(), torch.tensor([[0, 1, 0, 1, 1], [0, 0, 1, 1, 1]])
    objective = Classification(class_weights=[0.1, 0.7])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(objective.loss(logits, classes), torch.full((2,), math.log(2)), rtol=1e-6)
