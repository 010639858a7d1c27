"""Federated learning as a LightningModule: its parts, what a method overrides, and what Lightning calls around rounds.

The module knows no method: a method overrides what a sub-model is (``index``), what is sent (``upload_index``), the
local ``loss`` and the prediction (``predict``). The round itself is in :mod:`hetfl.federation.training`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from hetfl.aggregators import Aggregator, HolderMean
from hetfl.clustering import Clustering, OneCluster
from hetfl.compression import ErrorFeedback, Identity
from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError
from hetfl.federation import state
from hetfl.federation.aggregating import ClusterAggregators
from hetfl.federation.budgets import Axis, Budgets
from hetfl.federation.clients import Clients, OwnClients
from hetfl.federation.clusters import add_group
from hetfl.federation.collective import Ranks
from hetfl.federation.exchange import Exchange
from hetfl.federation.fingerprint import fingerprint
from hetfl.federation.forecast import Forecast
from hetfl.federation.ledger import Ledger
from hetfl.federation.level_table import save_levels
from hetfl.federation.levels import LevelSet
from hetfl.federation.ranks import RankClients
from hetfl.federation.statistics import StaticStatisticsStore
from hetfl.federation.training import TrainingModule
from hetfl.fleet import Dynamic, Fleet, LevelAssignment, SameDevice
from hetfl.local import Auto, Executor, LocalTraining, Sequential
from hetfl.local.training import check_optimizers
from hetfl.metrics_file import COLUMNS
from hetfl.run_folder import RunFolder
from hetfl.selection import Selection, Uniform
from hetfl.submodel import only, parameters_of
from hetfl.types import ClientContext, Index, Level, NetFactory

PRECISIONS = ("32-true", "bf16-mixed", "64-true")
"""Lightning's precisions in which local steps need no gradient scaler, and deltas keep at least float32."""


def default_server_optimizer(params: Iterable[Tensor]) -> Optimizer:
    """Return SGD(lr=1): the global model moves by the mean delta, which is federated averaging."""
    return SGD(params, lr=1.0)


class FederatedModule(TrainingModule):
    """Federated learning of one global model by clients that train parts of it.

    One epoch is one round; its one batch is the round itself. The server optimizer is the Lightning optimizer, so
    ``max_epochs`` is the number of rounds and ``global_step`` the number of server steps. The clients' learning rate
    lives in a second optimizer that steps nothing, so that schedulers, monitors and checkpoints see it.

    Args:
        net: builds the net of a level: a class, or a class with some arguments bound, that takes ``width``.
        levels: what clients can afford, by name, the global model's first; or its budgets; None: the method's own.
        assignment: which client has which level in which round; default: redrawn every round, all levels alike.
        selection: which clients take part; default: 10 drawn uniformly.
        local: what a client does with its data.
        uplink: the compressor and its error feedback, through which every delta leaves a client; default: everything
            is sent.
        aggregator: how updates are combined; None: the method's own.
        server_optimizer: makes the server's optimizer; default: SGD(lr=1).
        executor: runs the clients; default: one after the other.
        clustering: which clients share a global model; default: all of them one.
        fleet: the clients' devices: how fast, when within reach, when they fail; default: all alike, always there.
        deadline: simulated seconds from the beginning of training after which updates are dropped; None: all count.
        statistics_clients: how many clients gather static batch-norm statistics of each level before an evaluation,
            drawn from those that can afford it; None: all of them.
        check_nesting: refuse nets whose sub-models are not their leading channels.
        seed: of every random choice; on the command line it follows ``seed_everything``.
    """

    default_levels: ClassVar[Mapping[str, Level]] = {"a": Level("a")}
    _met: FederatedDataModule | None = None

    def __init__(
        self,
        net: NetFactory,
        levels: dict[str, Level] | Budgets | None = None,
        assignment: LevelAssignment | None = None,
        selection: Selection | None = None,
        local: LocalTraining | None = None,
        uplink: ErrorFeedback | None = None,
        aggregator: Aggregator | None = None,
        server_optimizer: Callable[[Iterable[Tensor]], Optimizer] = default_server_optimizer,
        executor: Executor | None = None,
        clustering: Clustering | None = None,
        fleet: Fleet | None = None,
        deadline: float | None = None,
        statistics_clients: int | None = None,
        check_nesting: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        own_axis: Axis = "width" if all(level.depth is None for level in self.default_levels.values()) else "depth"
        self.levels = LevelSet(net, self.default_levels if levels is None else levels, seed, own_axis)
        self.clustering = clustering or OneCluster()
        self.net = self.levels.net
        self.other_nets = nn.ModuleList(self.levels.draw(number) for number in range(1, self.clustering.count))
        self.assignment, self.selection = assignment or Dynamic(), selection or Uniform()
        self.local = local or LocalTraining()
        self.uplink = uplink or ErrorFeedback(Identity())
        self.aggregator = aggregator or self.default_aggregator()
        self.server_optimizer, self.executor = server_optimizer, executor or Sequential()
        self.fleet, self.deadline = fleet or SameDevice(), deadline
        self.ledger = Ledger(self.fleet, deadline)
        self.aggregators = ClusterAggregators(self.aggregator)
        self.exchange = Exchange(self.uplink, self.aggregators, self.ledger)
        self.clients: Clients = OwnClients(self)
        self.statistics = StaticStatisticsStore(self.levels.affords)
        if statistics_clients is not None and statistics_clients < 1:
            raise ConfigurationError(f"Expected statistics_clients of at least 1 or null but got {statistics_clients}")
        self.statistics_clients = statistics_clients
        self.check_nesting, self.seed, self.version = check_nesting, seed, 0

    # What a method overrides.

    def default_aggregator(self) -> Aggregator:
        """Return the method's own aggregator."""
        return HolderMean()

    def index(self, level: str, round: int) -> Index:
        """Return what a level's sub-model holds: by default the leading block of every tensor."""
        return self.levels.indices[level]

    def upload_index(self, client: int, level: str, round: int) -> Index:
        """Return what a client sends, and counts as a holder of: by default its index without frozen parameters."""
        index = self.index(level, round)
        if not self.frozen:
            return index
        return only(index, frozenset(index) - self.frozen)

    def restrict(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return logits (..., K) as a client with only some ``labels`` (..., K) uses them; by default as they are."""
        return logits

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        """Return the local loss of outputs (N, K) and targets (N,); with leading client dimensions, one loss each."""
        logits = self.restrict(outputs, ctx.labels.unsqueeze(-2))
        if logits.dim() == 2:
            return F.cross_entropy(logits, targets)
        losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
        return losses.view(targets.shape).mean(-1)

    def predict(self, net: nn.Module, inputs: Tensor) -> Tensor:
        """Return the logits (N, K) that an evaluation uses; refuse several exits, which the loss cannot take."""
        logits: Tensor = net(inputs)
        if logits.dim() != 2:
            raise ConfigurationError(
                f"Expected a net with one exit, of logits (N, K), for {type(self).__name__} but got logits of shape "
                f"{tuple(logits.shape)}: nets with an exit per stage are for hetfl.DepthFL"
            )
        return logits

    def predict_heads(self, net: nn.Module, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the same, and the logits of single heads by name, from one pass: by default there are none."""
        return self.predict(net, inputs), {}

    # What Lightning calls.

    def setup(self, stage: str) -> None:
        """Meet the data: check everything that can be checked before the first round."""
        if stage == "predict" and not self.has_data:
            return
        data = self.data
        if self.trainer.precision not in PRECISIONS:
            raise ConfigurationError(
                f"Expected precision in {PRECISIONS} but got {self.trainer.precision}: "
                "local steps have no gradient scaler, and their deltas need float32"
            )
        self._meet_ranks()
        self.fleet.setup(data.num_clients, self.seed)
        self.assignment.setup(list(self.levels), data.num_clients, self.seed)
        self.selection.setup(data.sizes, self.seed)
        self.selection.check_weighting(self.aggregator.by_size)
        self.clustering.setup(data.num_clients, self.seed)
        self.check_clustering()
        if self._met is not data:
            check_optimizers(self.server_optimizer, parameters_of(self.net).values(), self.local)
            samples = data.transform.eval(data.client_data(0).inputs[:4])
            self.flops = self.levels.inspect(samples, data.num_classes, self.check_nesting, self.predict)
            self._met = data
        self.predict_seconds()
        self.setup_evaluation(data)
        if stage == "fit":
            self.fleet.check_rounds(self._last_round_asked())
            folder = self.trainer.log_dir if self.trainer.loggers else None
            self.uplink.residuals.bind(f"{folder}/residuals" if folder else None)
            self.selection.bind(f"{folder}/updates" if folder else None)
            self.clustering.bind(f"{folder}/clustering" if folder else None)
            if self.local.penalty is not None:
                self.local.penalty.bind(f"{folder}/memories" if folder else None)

    def _last_round_asked(self) -> int | None:
        """Return up to which round training goes: in a second fit so many more; None or below 0: without end."""
        rounds, behind = self.trainer.max_epochs, 0 if self.trainer.ckpt_path else self.version
        return rounds if rounds is None or rounds < 0 else behind + rounds

    def _meet_ranks(self) -> None:
        """Share clients of this process with the other processes of a distributed trainer, if it is one.

        Raises:
            ConfigurationError: the trainer's processes do not all have the whole model, or would not train alike.
        """
        if self.trainer.world_size == 1:
            if isinstance(self.clients, RankClients):
                self.clients = OwnClients(self)
            return
        if not isinstance(self.trainer.strategy, DDPStrategy) or not isinstance(self.clients, OwnClients | RankClients):
            raise ConfigurationError(
                f"Expected strategy ddp, and clients of the trainer's own, for {self.trainer.world_size} devices but "
                f"got {type(self.trainer.strategy).__name__} and {type(self.clients).__name__}"
            )
        if isinstance(self.executor, Auto):
            raise ConfigurationError(
                "Expected an executor by name for several devices but got Auto, which every rank would choose by itself"
            )
        # Every rank logs the same numbers, as each of them does the server's part; only residual/norm is another, as
        # rank zero alone keeps residuals, and rank zero's is what loggers write.
        warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\(.*sync_dist=True")
        self.clients = RankClients(self, Ranks())

    def predict_seconds(self) -> None:
        """Make the forecast for the present number of models, and tell who assigns levels by it."""
        tried = self.clustering.count if self.clustering.asks else int(self.aggregator.asks_losses)
        further = {level: self.own_size(level, 0) for level in self.levels}
        sizes, epochs = self.data.sizes, self.local.epochs
        self.forecast = Forecast(self.fleet, sizes, epochs, self.levels.sizes, self.flops, tried, further)
        self.assignment.meet(self.forecast.table())

    def configure_optimizers(self) -> Any:
        """Return the server's optimizer and the carrier of the clients' learning rate, with its schedule."""
        carrier = self.local.optimizer([nn.Parameter(torch.zeros(1))])
        schedules = [] if self.local.scheduler is None else [self.local.scheduler(carrier)]
        server = self.server_optimizer(parameters_of(self.net).values())
        for net in self.other_nets:
            add_group(server, (p for name, p in parameters_of(net).items() if name not in self.shared))
        return [server, carrier], schedules

    def on_fit_start(self) -> None:
        """Get ready to train; nothing in a run's folder changes yet, as a checkpoint may still be refused."""
        self.open_bench()
        self.clients.begin()
        if self.local.penalty is not None:
            self.local.penalty.setup(parameters_of(self.net), self.data.num_clients, self.shared)
        for logger in self.loggers:
            if isinstance(logger, RunFolder):
                logger.check_rounds(self.version)

    def on_train_start(self) -> None:
        """Begin to write: in a resumed run, forget the rows of rounds that will be run again."""
        if self.version != self.current_epoch:
            rank_zero_info(
                f"This module has {self.version} rounds behind it and goes on with round {self.version}, counted from "
                "0: optimizers and the schedule of the learning rate begin anew"
            )
        for logger in self.loggers:
            if isinstance(logger, RunFolder):
                logger.truncate(self.version)
                logger.declare([*COLUMNS, *(f"val/accuracy/{level}" for level in self.levels)])
                save_levels(logger, self)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """What a checkpoint of this federation depends on: taken once a run, not at every checkpoint."""
        return fingerprint(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know."""
        state.save(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back; refuse the checkpoint of another federation."""
        state.load(self, checkpoint)
