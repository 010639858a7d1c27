"""The cost of the framework: a round of local training compared with a bare PyTorch loop with the same steps.

With --whole-round: a whole round compared with its local training.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from functools import partial
from typing import cast

import torch
from executors import executors
from peers import MakePeer, check_peer, installed_peers
from timing import Row, double_precision, interleaved, no_collector, parser, report, rows, threads
from torch.optim import SGD
from work import CLIP, LR, MOMENTUM, SEED, WEIGHT_DECAY, Setting, bare_loop, bare_work

from hetfl import HeteroFL
from hetfl.compression import ErrorFeedback, GammaFedHT
from hetfl.data import TensorData
from hetfl.federation.clients import OwnClients
from hetfl.federation.probing import RoundProbe
from hetfl.global_models import default_server_optimizer
from hetfl.local import Executor, LocalTraining, Result, Sequential
from hetfl.local.jobs import train
from hetfl.piece import Facts
from hetfl.schedule import Flight
from hetfl.types import Task


class Federation(HeteroFL):
    """HeteroFL without a trainer.

    Args:
        setting: the work of a round.
        data: the samples of the clients.
        executor: runs the clients.
        uplink: compresses the deltas.
        device: of the global model, and so of the clients' nets.
    """

    def __init__(
        self,
        setting: Setting,
        data: TensorData,
        executor: Executor,
        uplink: ErrorFeedback | None = None,
        device: str = "cpu",
    ) -> None:
        local = LocalTraining(
            epochs=setting.epochs,
            batch_size=setting.batch_size,
            gradient_clip=CLIP,
            optimizer=partial(SGD, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
        )
        levels = {"a": self.default_levels["a"]} if setting.cnn else None
        objective = data.objective
        super().__init__(
            setting.net, levels, local=local, uplink=uplink, executor=executor, objective=objective, seed=SEED
        )
        self.to(device)
        self.setting, self.samples = setting, data
        self.levels.flops = dict.fromkeys(self.levels, (0.0, 0.0))
        self.optimizer = default_server_optimizer(self.net.parameters())
        self.fleet.setup(Facts([1] * data.num_clients, SEED))
        self.hosting.open(data)

    @property
    def data(self) -> TensorData:
        """The samples of the clients."""
        return self.samples

    def _precision_context(self) -> AbstractContextManager[object]:
        """Return a context that changes nothing."""
        return nullcontext()

    def close(self) -> None:
        """Stop the processes of the executor."""
        self.executor.close()

    def local_training(self, number: int) -> list[Result]:
        """Run the clients of a round."""
        tasks = [self.task_parts.drawn(task) for task in self.setting.tasks(number)]
        return list(self.executor.run(train, tasks))

    def whole_round(self, number: int) -> Iterator[str]:
        """Run a round like the trainer, but without selection; yield the name of each part after the part."""
        results = self.local_training(number)
        yield "local training"
        self.server.reset()
        for result in results:
            self._take(result)
        yield "uplink and sums"
        self.server.step(self.optimizer, self.optimizer.step, number, known=True)
        self.models.version += 1
        self.uplink.end_round(number)
        yield "mean and server step"

    def _take(self, result: Result) -> None:
        assert isinstance(self.clients, OwnClients)
        reply = self.clients.side.send(result, self.clients.begun)
        assert reply.report is not None
        down_bytes = self.server.down_bytes(reply.task, cast(RoundProbe, Unasked()))
        work = self.levels.work(reply.task, down_bytes, reply.report.passes, len(reply.payload), training=True)
        accepted = self.server.receive(Flight(reply.task, work, reply))
        if accepted is None:
            raise RuntimeError(f"Expected every update to be accepted but got a refusal of {result.task}")
        for piece in self.pieces.values():
            piece.observe(accepted.update, accepted.index, accepted.report)
        self.clients.take(reply, accepted.update)


class Unasked:
    """The probe of a round without queries to clients."""

    def has_model(self, task: Task) -> bool:
        """Return false."""
        return False


def check(setting: Setting, executor: Executor, foreach: bool = False) -> None:
    """Compare the deltas of both sides for two rounds in float64.

    Raises:
        RuntimeError: an entry differs by more than 1e-10.
    """
    with double_precision(), closing(Federation(setting, setting.data(), executor)) as federation:
        bare = bare_loop(setting, federation.data, federation.models.tensors[0], foreach)
        for number in range(2):
            expected = [torch.cat([t.flatten() for t in delta]) for delta in bare.round(bare_work(setting, number))]
            for result, delta_D in zip(federation.local_training(number), expected, strict=True):
                difference = float((result.vector - delta_D).abs().max())
                if not difference <= 1e-10 or not bool(delta_D.any()):
                    raise RuntimeError(f"Expected equal deltas for {result.task} but got a difference of {difference}")


def local_rounds(
    setting: Setting,
    makes: Mapping[str, Callable[[], Executor]],
    *,
    num_threads: int,
    blocks: int,
    peers: Mapping[str, MakePeer] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Check that the deltas of bare loops and executors are equal, and return the times of both.

    Args:
        setting: the work of a round.
        makes: functions that make executors, by name; executors with processes come first.
        num_threads: number of torch's threads in the bare loops, and in executors of this process.
        blocks: number of timed blocks.
        peers: functions that make the sides of other packages, by name; they need a setting with one level.
        clock: source of seconds.
    """
    with threads(1):
        check(setting, Sequential(), foreach=True)
        for make in makes.values():
            check(setting, make())
    data, warmup = setting.data(), 2
    work = [bare_work(setting, number) for number in range(warmup + blocks)]
    with threads(num_threads), ExitStack() as opened:
        federations = {
            name: opened.enter_context(closing(Federation(setting, data, make()))) for name, make in makes.items()
        }
        for federation in federations.values():
            federation.local_training(0)  # starts worker processes before this process starts threads
        sides: dict[str, Callable[[int], object]] = {}
        for name, foreach, count in bare_sides(num_threads):
            bare = bare_loop(setting, data, federation.models.tensors[0], foreach)
            sides[name] = threads(count)(lambda number, bare=bare: bare.round(work[number]))
        sides |= {name: federation.local_training for name, federation in federations.items()}
        for name, make_peer in (peers or {}).items():
            start = bare.slices[setting.levels]
            peer = opened.enter_context(closing(make_peer(setting, start)))
            with threads(1):
                check_peer(setting, peer, bare)
            sides[name] = partial(lambda peer, number: peer.round(work[number]), peer)
        numbers = {name: iter(range(warmup + blocks)) for name in sides}
        times = interleaved(
            {name: lambda name=name, side=side: side(next(numbers[name])) for name, side in sides.items()},  # type: ignore[misc]
            blocks=blocks,
            warmup=warmup,
            clock=clock,
        )
    what = "CNN" if setting.cnn else f"level {setting.levels}"
    if len(setting.levels) > 1:  # executors are compared with Sequential
        what, times = f"levels {setting.levels}", {"Sequential": times.pop("Sequential"), **times}
    return rows(f"local round, {what}, {setting.samples} samples", times)


def bare_sides(num_threads: int) -> list[tuple[str, bool, int]]:
    """Return name, foreach and number of threads of the bare loops; the first is the baseline."""
    name = f"bare loop, {num_threads} thread" + ("s" if num_threads > 1 else "")
    sides = [(name, False, num_threads), (f"{name}, foreach", True, num_threads)]
    # Several threads may be slower on small nets, so the loop with one thread is timed too.
    return sides if num_threads == 1 else [*sides, ("bare loop, 1 thread", False, 1)]


def whole_rounds(setting: Setting, *, blocks: int, density: float = 0.05) -> list[Row]:
    """Return the times of local training, of the later parts, and of the whole, in the same rounds.

    Every client takes part once before the timing, so that all have residuals and the threshold is calibrated.
    """
    check(setting, Sequential())
    warmup = -(-setting.clients // setting.cohort)
    federation = Federation(setting, setting.data(), Sequential(), ErrorFeedback(GammaFedHT(density=density)))
    seconds: dict[str, list[float]] = {}
    with threads(1), no_collector():
        for number in range(warmup + blocks):
            gc.collect()
            begin = last = time.perf_counter()
            for part in federation.whole_round(number):
                now = time.perf_counter()
                seconds.setdefault(part, []).append(now - last)
                last = now
            seconds.setdefault("whole round", []).append(last - begin)
    timed = {part: times[warmup:] for part, times in seconds.items()}
    return rows(f"whole round, levels {setting.levels}, density {density}", timed)


def main() -> None:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--levels", default=None, help="levels, each a separate case (default: d)")
    options.add_argument("--cnn", action="store_true", help="a case with the CNN of the simulators' comparisons")
    options.add_argument("--mixed", metavar="LEVELS", help="a case of clients of several levels, against Sequential")
    options.add_argument("--workers", type=int, help="all executors, with N processes, against the loop with N threads")
    options.add_argument("--samples", type=int, default=50, help="samples per client (default: %(default)s)")
    options.add_argument("--whole-round", action="store_true", help="a cohort of mixed levels (default: abcde)")
    options.add_argument("--peers", action="store_true", help="also pfl and Flower's simulation, if installed")
    given = options.parse_args()
    if given.peers and given.whole_round:
        options.error("Expected --peers without --whole-round: peers are compared by local training")
    if given.whole_round:
        results = whole_rounds(Setting(given.levels or "abcde", samples=given.samples), blocks=given.blocks)
    else:
        levels = given.levels or ("" if given.cnn or given.mixed else "d")
        settings = [Setting(level, samples=given.samples) for level in levels]
        if given.cnn:
            settings.append(Setting("a", samples=given.samples, size=32, channels=3, cnn=True))
        if given.mixed:
            settings.append(Setting(given.mixed, samples=given.samples))
        results, peers = [], installed_peers(given.workers or 2) if given.peers else {}
        for setting in settings:
            makes = executors(given.workers, setting.cohort) if given.workers else {"Sequential": Sequential}
            results += local_rounds(setting, makes, num_threads=given.workers or 1, blocks=given.blocks, peers=peers)
    report(results, given.json)


if __name__ == "__main__":
    main()
