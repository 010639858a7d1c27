"""For every rule that hetfl.testing checks, a class here breaks it, and the error names the rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from hetfl import Level, testing
from hetfl.aggregators import HolderMean
from hetfl.compression import Compressor, Context, Identity, TopK
from hetfl.data import IID, Partitioner
from hetfl.errors import ConfigurationError
from hetfl.models import scaled
from hetfl.objectives import Classification, Regression
from hetfl.part import Part
from hetfl.parts import Prefix, RandomMask
from hetfl.piece import Piece
from hetfl.selection import Probe, Uniform
from hetfl.updates import DenseUpdate, SparseUpdate, Update


def broken(check: Callable[[], None], message: str) -> None:
    with pytest.raises((AssertionError, ConfigurationError), match=message) as error:
        check()
    assert "\n" not in str(error.value)


class Applied(Compressor):
    """A compressor that applies a function to the vector."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        self.function = function

    def apply(self, p_D: Tensor, context: Context) -> Any:
        return self.function(p_D)


def swapped(p_D: Tensor) -> Update:
    indices = torch.arange(p_D.numel()).flip(0)
    return SparseUpdate(p_D[indices], indices, p_D.numel())


class Unkept(Identity):
    """Does not keep its constructor argument."""

    def __init__(self, density: float = 0.1) -> None:
        self._density = density


class Counting(Compressor):
    """Sends fewer entries from call to call without any accepted update; may save its count."""

    def __init__(self, saves: bool = False, observes: bool = False) -> None:
        self.saves, self.observes = saves, observes
        self._count = 0

    def apply(self, p_D: Tensor, context: Context) -> Update:
        self._count += not self.observes
        return DenseUpdate(p_D * (1.0 if self._count % 7 < 2 else 0.5))

    def observe(self, update: Update, layout: Any = None, report: Any = None) -> None:
        self._count += self.observes

    def state_dict(self) -> dict[str, Any]:
        return {"count": Level("a") if self.saves else 0}


class Takes(Identity):
    """Accepts inputs that are not vectors."""

    def compress_in(self, p_D: Tensor, context: Context) -> Update:
        return DenseUpdate(p_D)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Applied(lambda p_D: p_D), "an Update .* from Applied.apply but got Tensor"),
        (lambda: Applied(lambda p_D: DenseUpdate(p_D[:-1])), "an update of 1 entries .* but got one of 0"),
        (lambda: Applied(lambda p_D: DenseUpdate(p_D.mul_(2))), "leave its vector as it is but got it changed"),
        (lambda: Applied(lambda p_D: DenseUpdate(p_D.data.mul_(2))), "Applied.apply to leave its vector as it is"),
        (lambda: Applied(lambda p_D: DenseUpdate(p_D.float())), "an update of torch.float64, as the vector"),
        (lambda: Applied(lambda p_D: DenseUpdate(p_D / p_D.sum())), "finite values from Applied but got NaN or Inf"),
        (lambda: Applied(swapped), "strictly rising indices within the vector from Applied"),
        (lambda: Applied(lambda p_D: DenseUpdate(torch.rand_like(p_D))), "the same update of the same vector"),
        (Unkept, "Unkept.settings to have every argument .* but got none for density"),
        (Counting, "Counting to learn only from accepted updates, by observe"),
        (lambda: Counting(observes=True), "Counting to continue from a saved state as without saving"),
        (lambda: Counting(saves=True, observes=True), "Counting.state_dict to have plain types and tensors"),
        (Takes, r"Takes.compress to refuse a vector of \[\[1.0"),
        (lambda: 3, "a Compressor, or a function that makes one but got int"),
    ],
)
def test_broken_compressors_fail_the_check(make: Callable[[], Any], message: str) -> None:
    broken(lambda: testing.check_compressor(make), message)


class Changed(HolderMean):
    """A mean changed by a function, with a state that is saved or not."""

    def __init__(self, change: Callable[[Changed, dict[str, Tensor], dict[str, Tensor]], Any]) -> None:
        super().__init__()
        self.change, self.rounds = change, 0

    def update(self, update: Any, index: Any, report: Any) -> None:
        self.rounds += 1
        super().update(update, index, report)

    def compute(self) -> Any:
        return self.change(self, *super().compute())


class Scaling(HolderMean):
    """Halves its input update, or counts senders in place of holders."""

    def __init__(self, senders: bool = False) -> None:
        super().__init__()
        self.senders = senders

    def update(self, update: Any, index: Any, report: Any) -> None:
        super().update(update, index, report)
        if not self.senders:
            update.values.mul_(0.5)
        elif isinstance(update, SparseUpdate):
            super().update(update, index, report)


class Inexact(HolderMean):
    """A mean of updates whose exact block a function has replaced."""

    def __init__(self, replaced: Callable[[Any], DenseUpdate]) -> None:
        super().__init__()
        self.replaced = replaced

    def update(self, update: Any, index: Any, report: Any) -> None:
        super().update(self.replaced(update), index, report)


def each(values: dict[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: change(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Changed(lambda _, d, h: None), "two dicts, steps and holders, from Changed.compute"),
        (lambda: Changed(lambda _, d, h: (each(d, lambda t: t[None]), h)), r"Expected a step of .* for 'kernel'"),
        (lambda: Changed(lambda _, d, h: (d, each(h, torch.ones_like))), "holders above 0 exactly where a client"),
        (lambda: Changed(lambda _, d, h: (each(d, lambda t: t + 1), h)), "a step of 0 where no client holds an entry"),
        (lambda: Changed(lambda _, d, h: (each(d, lambda t: t / 0), h)), "step of 0 where no client|finite step of"),
        (
            lambda: Changed(lambda _, d, h: (each(d, torch.zeros_like), h)),
            r"a step of 'kernel' that follows the vectors, update.to_dense\(\), from Changed but got 0 everywhere",
        ),
        (
            lambda: Inexact(lambda update: DenseUpdate(update.to_dense(), exact=torch.zeros_like(update.exact))),
            "a step of 'running_mean' that follows the exact blocks, update.exact, from Inexact but got 0 everywhere",
        ),
        (
            lambda: Inexact(lambda update: DenseUpdate(update.to_dense(), exact=update.to_dense()[:2])),
            "follows the exact blocks, update.exact, from Inexact but got the same step of other ones",
        ),
        (
            lambda: Inexact(lambda update: DenseUpdate(update.to_dense())),
            r"Inexact.update to take a vector of \d+ entries, .*, and an exact block of 2, update.exact, but got: ",
        ),
        (lambda: Changed(lambda _, d, h: (each(d, lambda t: t * torch.rand(())), h)), "the same step of the same"),
        (lambda: Changed(lambda s, d, h: (each(d, lambda t: t * s.rounds), h)), "to continue from a saved state as"),
        (Scaling, "Scaling.update to read the update only"),
        (lambda: Scaling(senders=True), "holders of what a client holds, sent or not, from Scaling"),
    ],
)
def test_broken_aggregators_fail_the_check(make: Callable[[], Any], message: str) -> None:
    broken(lambda: testing.check_aggregator(make), message)


class Picks(Uniform):
    """Selects by a function of the round, the probe and the number of calls so far."""

    replayable = False

    def __init__(self, pick: Callable[[int, Probe, int], list[int]]) -> None:
        super().__init__(3)
        self.pick, self.calls = pick, 0

    def select(self, round: int, probe: Probe) -> list[int]:
        self.calls += 1
        return self.pick(round, probe, self.calls)


class Asks(Picks):
    """Claims to be replayable."""

    replayable = True


class Weighs(Uniform):
    """Gives all clients weight 0."""

    def weight(self, client: int) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Picks(lambda round, probe, calls: [0]), "within reach, .* from Picks.select but got 0 in round 1"),
        (lambda: Picks(lambda round, probe, calls: [*probe.clients[:1]] * 2), "every client once from Picks.select"),
        (lambda: Picks(lambda round, probe, calls: []), "a client from Picks where . are within reach but got none"),
        (
            lambda: Picks(lambda round, probe, calls: [probe.clients[i] for i in torch.randperm(len(probe.clients))]),
            "the same cohort from two Picks of one seed",
        ),
        (
            lambda: Picks(lambda round, probe, calls: list(probe.clients[-(calls % 2) :][:1])),
            "continue from a saved state",
        ),
        (lambda: Asks(lambda r, probe, c: [*probe.clients, *map(int, probe.losses([]))]), "not to use the probe"),
        (Weighs, "a weight above 0 for each client of the cohort from Weighs"),
    ],
)
def test_broken_selections_fail_the_check(make: Callable[[], Any], message: str) -> None:
    broken(lambda: testing.check_selection(make), message)


class Shares(Partitioner):
    """Partitions with a function."""

    def __init__(self, share: Callable[[Tensor, int, torch.Generator], Any]) -> None:
        self.share = share

    def partition(self, labels: Tensor, num_clients: int, generator: torch.Generator) -> Any:
        return self.share(labels, num_clients, generator)


class Lax(IID):
    """Does not refuse too many clients."""

    def __call__(self, labels: Tensor, num_clients: int, generator: torch.Generator) -> list[Tensor]:
        return self.partition(labels, num_clients, generator)


def refuses(labels: Tensor, clients: int, generator: torch.Generator) -> list[Tensor]:
    raise ConfigurationError("no")


def in_turn(labels: Tensor, clients: int, order: Tensor) -> list[Tensor]:
    return list(order.tensor_split(clients))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shares(lambda y, n, g: [torch.arange(len(y))]), "4 parts from Shares for 30 samples"),
        (lambda: Shares(lambda y, n, g: in_turn(y, n, torch.arange(len(y)) / 1)), "positions as int64 of shape"),
        (lambda: Shares(lambda y, n, g: [torch.arange(len(y))] * n), "every sample at most once from Shares"),
        (lambda: Shares(lambda y, n, g: in_turn(y, n, torch.arange(len(y)) + 1)), "positions of samples from Shares"),
        (lambda: Shares(lambda y, n, g: in_turn(y, n, torch.arange(len(y) - 1))), "every sample at a client"),
        (lambda: Shares(lambda y, n, g: in_turn(y.add_(1), n, torch.arange(len(y)))), "labels that are left as they"),
        (lambda: Shares(lambda y, n, g: in_turn(y, n, torch.randperm(len(y)))), "only from the generator"),
        (lambda: Shares(refuses), 'a refusal of one line, "Expected'),
        (Lax, "Lax to refuse 21 clients for 20 samples"),
    ],
)
def test_broken_partitioners_fail_the_check(make: Callable[[], Any], message: str) -> None:
    broken(lambda: testing.check_partitioner(make), message)


def test_a_partitioner_that_leaves_samples_out_passes_if_declared() -> None:
    testing.check_partitioner(Shares(lambda y, n, g: in_turn(y, n, torch.arange(max(n, len(y) - 1)))), leaves_out=True)


class Cuts(Prefix):
    """Parts made by a function of the leading block, the round, the client and the number of calls."""

    def __init__(self, cut: Callable[[Part, int, int, int], Any], masks: bool = True) -> None:
        self.cut, self.calls = cut, 0
        self.masks = masks  # type: ignore[misc]

    def part(self, level: str, round: int, client: int) -> Any:
        self.calls += 1
        block = super().part(level, round, client)
        return block if level == "a" else self.cut(block, round, client, self.calls)


class Whole(RandomMask):
    """Also drops entries of the largest level."""

    def part(self, level: str, round: int, client: int) -> Part:
        part = super().part(level, round, client)
        return Part(part, torch.arange(part.layout.size) > 0) if level == "a" else part


class Sends(Prefix):
    """Sends entries that it does not hold."""

    def sent(self, part: Part, level: str, round: int, client: int) -> Part:
        return self.levels.indices["a"]


def moved(block: Part, by: int) -> Part:
    return Part({n: tuple(slice(d.start + by, d.stop + by) for d in e) for n, e in block.items()})  # type: ignore[union-attr]


def flipped(block: Part) -> Part:
    return Part({n: tuple(torch.arange(d.stop).flip(0) for d in e) for n, e in block.items()})  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cuts(lambda block, r, k, c: dict(block)), r"a Part \(hetfl.part\) from Cuts.part but got dict"),
        (lambda: Cuts(lambda block, r, k, c: moved(block, 1)), r"rising positions below 1 in 'blocks.0.conv.weight'"),
        (lambda: Cuts(lambda block, r, k, c: flipped(block)), "rising positions below . in .* at level b from Cuts"),
        (lambda: Cuts(lambda block, r, k, c: Part({})), "parts of the shapes of the net at level b from Cuts"),
        (
            lambda: Cuts(lambda block, r, k, c: Part(block, torch.arange(block.layout.size) > 0), masks=False),
            "masks = True in Cuts, whose parts have masks",
        ),
        (
            lambda: Cuts(lambda block, r, k, c: Part(block, torch.arange(block.layout.size) > c)),
            "a part that is a function of seed, level, round and client from Cuts",
        ),
        (Whole, "all entries at level a, the largest, from Whole"),
        (Sends, "Sends.sent to be within the part"),
    ],
)
def test_broken_part_rules_fail_the_check(make: Callable[[], Any], message: str) -> None:
    broken(lambda: testing.check_part_rule(make), message)


class Learnt(RandomMask):
    """Depends on its observed updates, and does not save them."""

    def setup(self, facts: Any) -> None:
        self.seen = 0

    def observe(self, update: Any, index: Any, report: Any) -> None:
        self.seen += 1

    def part(self, level: str, round: int, client: int) -> Part:
        return super().part(level, round + 100 * self.seen, client)


def test_a_part_rule_that_does_not_save_its_state_fails_the_check() -> None:
    broken(lambda: testing.check_part_rule(Learnt), "Learnt to continue from a saved state as without saving")


class Forgets(Piece):
    """Counts rounds and saves their number, but sets it back in ``begin``, which a resumed run calls after loading."""

    rounds = 0

    def begin(self) -> None:
        super().begin()
        self.rounds = 0

    def end_round(self, round: int) -> None:
        super().end_round(round)
        self.rounds += 1

    def state_dict(self) -> dict[str, Any]:
        return {"of": super().state_dict(), "rounds": self.rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state["of"])
        self.rounds = state["rounds"]


class ForgetfulMean(Forgets, HolderMean):
    def compute(self) -> Any:
        steps, holders = super().compute()
        return each(steps, lambda step: step * (1 + self.rounds)), holders


class ForgetfulUniform(Forgets, Uniform):
    replayable = False

    def select(self, round: int, probe: Probe) -> list[int]:
        return [probe.clients[self.rounds % len(probe.clients)]] if probe.clients else []


class ForgetfulMask(Forgets, RandomMask):
    def part(self, level: str, round: int, client: int) -> Part:
        return super().part(level, round + 100 * self.rounds, client)


@pytest.mark.parametrize(
    ("check", "make"),
    [
        (testing.check_aggregator, ForgetfulMean),
        (testing.check_selection, ForgetfulUniform),
        (testing.check_part_rule, ForgetfulMask),
    ],
)
def test_a_begin_that_resets_a_loaded_state_fails_the_check(check: Callable[..., None], make: type[Forgets]) -> None:
    broken(lambda: check(make), f"{make.__name__} to continue from a saved state as without saving")


class Net(nn.Module):
    """A net of two layers with one fault."""

    def __init__(self, wrong: str = "", width: float = 1.0) -> None:
        super().__init__()
        hidden = 8 if wrong == "size" else scaled(8, width)
        self.wrong, self.first, self.second = wrong, nn.Linear(6, hidden), nn.Linear(hidden, 3)
        self.unused = nn.Linear(hidden, 2) if wrong == "unused" else None
        if wrong == "random":
            nn.init.constant_(self.first.bias, float(next(COUNT)))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        if self.wrong == "order":
            hidden = hidden.flip(1)
        outputs: Tensor = self.second(hidden)
        return outputs[:, :2] if self.wrong == "outputs" else outputs


COUNT = iter(range(1000))


@pytest.mark.filterwarnings("ignore:Expected a net that is smaller")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("size", "a smaller Net at width 0.5 than at width 1"),
        ("random", "initial values of Net only from torch's generator"),
        ("outputs", r"outputs of shape \(9, 3\) from the net at level l0"),
        ("order", "the leading channels and first stages of the global net"),
        ("unused", "a finite gradient of 'unused.weight' in Net at width 1 but got none"),
    ],
)
def test_broken_nets_fail_the_check(wrong: str, message: str) -> None:
    inputs = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    testing.check_net(Net, inputs, 3)
    broken(lambda: testing.check_net(lambda *, width=1.0: Net(wrong, width), inputs, 3), message)


class Squares(Regression):
    """A regression of one loss with one fault."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong
        if wrong == "headline":
            del self.headline
        self.target_dims = 1 if wrong == "dims" else 2  # type: ignore[misc]

    def prepared(self, targets: Tensor, where: str) -> Tensor:
        prepared = super().prepared(targets, where)
        return prepared[:-1] if self.wrong == "length" else prepared + 1 if self.wrong == "prepared" else prepared

    def label_counts(self, targets: Tensor, size: int) -> Tensor:
        return torch.ones(size) if self.wrong == "counts" else super().label_counts(targets, size)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.wrong == "several":
            return F.mse_loss(outputs, targets)
        loss = super().loss(outputs, targets)
        return {"no gradient": loss.detach(), "flat": loss * 0, "infinite": loss / 0}.get(self.wrong, loss)

    def weight(self, targets: Tensor) -> float:
        return {"weight": 1.0, "negative": -1.0}.get(self.wrong, super().weight(targets))

    def metrics(self, size: int) -> Mapping[str, Metric]:
        chosen = super().metrics(size)
        return dict(reversed(list(chosen.items()))) if self.wrong == "order" else chosen

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        sums = super().sums(outputs, targets)
        wrong = {"float": sums.float(), "score": sums * 2 + 1, "nan": sums.nan_to_num()}
        return wrong.get(self.wrong, sums)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("headline", r"a headline \(hetfl.objectives.Headline\) in Squares but got NoneType"),
        ("length", r"9 training targets from Squares.prepared but got float32 \(8, 2\)"),
        ("dims", r"targets of target_dims = 1 from Squares.prepared but got float32 \(9, 2\)"),
        ("prepared", "Squares.prepared to leave prepared targets as they are"),
        ("counts", r"label counts as int64 of shape \(2,\) from Squares"),
        ("several", "a loss of each leading dimension"),
        ("no gradient", "a loss with a gradient from Squares"),
        ("flat", "a gradient from Squares.loss but got 0 or NaN"),
        ("infinite", "a finite loss from Squares"),
        ("weight", "losses of batches whose mean, by Squares.weight, is the whole's"),
        ("negative", "weights above 0 from Squares.weight"),
        ("order", "the headline 'r2' first in Squares.metrics but got mae"),
        ("float", r"sums as float64 of shape \(9, M\) from Squares.sums but got float32"),
        ("score", "Squares.score of the sums to be the metric 'r2'"),
        ("nan", "a score of NaN where outputs are NaN from Squares"),
    ],
)
def test_broken_objectives_fail_the_check(wrong: str, message: str) -> None:
    targets = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    testing.check_objective(Squares(""), targets)
    broken(lambda: testing.check_objective(lambda: Squares(wrong), targets), message)


def test_checks_accept_an_object_in_place_of_a_factory() -> None:
    testing.check_compressor(TopK(0.1))
    testing.check_objective(Classification(), torch.arange(9) % 3)
    broken(
        lambda: testing.check_selection(lambda: Uniform(11)), "clients_per_round of at most the number of clients, 10"
    )
