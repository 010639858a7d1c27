"""Federated learning as a LightningModule: its components, and the hooks that Lightning calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from hetfl.accounting import Base, Downloads, Forecast, Ledger
from hetfl.aggregators import Aggregator
from hetfl.aggregators.per_model import Aggregators
from hetfl.arguments import checked
from hetfl.clustering import Clustering, OneCluster
from hetfl.compression import ErrorFeedback, Identity
from hetfl.data import FederatedDataModule
from hetfl.downlink import Broadcast, Downlink
from hetfl.federation.callback import follower
from hetfl.federation.clients import Clients, ClientSide, OwnClients
from hetfl.federation.evaluation import Batch, Evaluation
from hetfl.federation.facts import facts_of
from hetfl.federation.gathering import Gathering
from hetfl.federation.hosting import Hosting
from hetfl.federation.method import Method
from hetfl.federation.probing import Probing
from hetfl.federation.ranks import shared_clients
from hetfl.federation.round import Round
from hetfl.federation.server import Server
from hetfl.federation.state import KEY, RunState
from hetfl.federation.statistics import StaticStatisticsStore
from hetfl.federation.task_parts import TaskParts
from hetfl.fleet import Dynamic, Fleet, LevelAssignment, SameDevice
from hetfl.global_models import GlobalModels, default_server_optimizer, forget_cached
from hetfl.hooks import Hook, Hooks
from hetfl.levels.budgets import Budgets
from hetfl.levels.level_set import LevelSet
from hetfl.levels.table import level_costs, save_levels
from hetfl.local import DefaultExecutor, Executor, LocalProblem, LocalTraining, Personal
from hetfl.local.training import check_optimizers
from hetfl.objectives import Objective
from hetfl.parts import PartRule, Prefix
from hetfl.piece import described, settings_of
from hetfl.schedule import Schedule, Synchronous
from hetfl.selection import Selection, Uniform
from hetfl.submodel import parameters_of
from hetfl.trainer import requirements, writing
from hetfl.trainer.prediction import Prediction
from hetfl.types import Level, NetFactory
from hetfl.value import Measures, Value


@checked
class FederatedModule(Method):
    """Federated learning of one global model by clients that train parts of it.

    One epoch is one round; its one batch is the round itself. The server optimizer is the Lightning optimizer, so
    ``max_epochs`` is the number of rounds and ``global_step`` the number of server steps. A second optimizer, which
    moves nothing, holds the clients' learning rate, so that schedulers, monitors and checkpoints see it. An attribute
    that is a :class:`~hetfl.piece.Piece` takes part in the run under the attribute's name.

    Args:
        net: builds the net of a level: a class, or a class with some arguments bound, that takes ``width``.
        levels: the levels by name, the global model's first, or budgets; None: the default levels of the method.
        assignment: the level of each client in each round; default: drawn anew every round, all levels equally likely.
        selection: chooses the clients of a round; default: 10, drawn uniformly.
        local: the local training of a client.
        uplink: compressor and error feedback for the deltas that clients send; default: no compression.
        aggregator: combines the updates; None: the default aggregator of the method.
        server_optimizer: makes the server's optimizer; default: SGD(lr=1).
        executor: runs the clients; default: worker processes on a CPU (:class:`hetfl.local.DefaultExecutor`).
        clustering: chooses the global model of each client; default: one model for all clients.
        fleet: speeds, reachability and failures of the clients' devices; default: equal devices, always reachable.
        deadline: simulated seconds after the start of training; later updates are dropped; None: no deadline.
        statistics_clients: clients per level that gather static batch-norm statistics; None: all that can afford it.
        parts: the part of the global model that a client holds in a round; default: the leading channels and stages.
        per_level: patterns of names of the tensors of which each level has its own copy; None: there are none.
        personal: tensors that stay with their client, or patterns of their names; None: no personal tensors.
        objective: loss and metrics; default: the objective of the data.
        downlink: how the values that clients are sent are coded; None: they are sent float32.
        hooks: each may change a client's vector, an update on the server, or the server's step; None: no hooks.
        base: whether clients download frozen parameters once, or have them ``preinstalled`` (a digest is compared).
        check_nesting: refuse nets whose sub-models are not their leading channels.
        measures: measures of what clients' updates are worth, which are written into ``values.csv``; None: none.
        schedule: when clients take the model and when the server steps; default: rounds of one cohort.
        seed: of every random choice; on the command line it follows ``seed_everything``.
    """

    _checked_data: FederatedDataModule | None = None

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
        parts: PartRule | None = None,
        per_level: list[str] | None = None,
        personal: Personal | list[str] | None = None,
        objective: Objective | None = None,
        downlink: Downlink | None = None,
        hooks: list[Hook] | None = None,
        base: Base = "download",
        check_nesting: bool = True,
        measures: list[Value] | None = None,
        schedule: Schedule | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.levels = LevelSet(net, self.default_levels if levels is None else levels, seed, self.axis, per_level)
        self.clustering, self.parts = clustering or OneCluster(), parts or Prefix()
        self.models = GlobalModels(self.levels, self.clustering.initial_models, self.clustering.shared)
        self.fleet, self.assignment = fleet or SameDevice(), assignment or Dynamic()
        self.selection, self.local = selection or Uniform(), local or LocalTraining()
        self.uplink, self.penalty = uplink or ErrorFeedback(Identity()), self.local.regulariser
        self.hooks, self.measures = Hooks(self.penalty, hooks or ()), Measures(measures or ())
        self.aggregator, self.server_optimizer = Aggregators(aggregator or self.default_aggregator()), server_optimizer
        self._objective, self.objective, self.seed = objective, objective or self.objective, seed
        self.personal, self.schedule = Personal.given(personal), schedule or Synchronous()
        self.executor, self.check_nesting = executor or DefaultExecutor(), check_nesting
        self._compose(self.schedule.ledger(self.fleet, deadline), downlink, base, statistics_clients)

    def _compose(self, ledger: Ledger, downlink: Downlink | None, base: Base, statistics_clients: int | None) -> None:
        """Build the components of a round from the constructor's arguments."""
        self.automatic_optimization, self.ledger = False, ledger
        self.downlink = Broadcast(downlink, self.models, self.personal, self.seed)
        self.statistics = StaticStatisticsStore(self.models, statistics_clients)
        self.parts.meet(self.levels, self.seed)
        personal, down = self.downlink.personal, self.downlink.size
        self.downloads = Downloads(self.levels.indices, personal, down, self.levels.whole, base)
        self.task_parts = TaskParts(self.parts, self.sent, self.models, self.downlink)
        self.schedule.meet(self.task_parts)
        side = ClientSide(self.seed, self.task_parts, self.uplink, self.penalty, self.fleet, self.personal, self.hooks)
        self.clients: Clients = OwnClients(self.executor, side)
        self.server = Server(self.task_parts, self.uplink, self.aggregator, self.hooks, self.ledger, self.downloads)
        of_model = (self.levels.indices, self.models.build, self, self._precision_context, personal)
        problem = LocalProblem(self.seed, self.local, *of_model, self.parts.trains_all, self.parts.trains_sent)
        self.hosting = Hosting(problem, self.task_parts, self.executor, self.statistics)
        self.prediction = Prediction(self.hosting.submodel, list(self.levels), self.models)
        self.run_state = RunState(self.hosting, self.clustering, self.server_optimizer, self._method)
        self.models.register_load_state_dict_post_hook(self._loaded)  # type: ignore[no-untyped-call]

    def setup(self, stage: str) -> None:
        """Set up for the trainer's data: check everything that can be checked before the first round."""
        if stage == "predict" and requirements.known_data(self) is None:
            return
        self.hosting.close()  # after a run that raised an error, Lightning calls no teardown
        data = self.data
        requirements.check_trainer(self.trainer, stage)
        self.objective = data.objective if self._objective is None else data.meet(self._objective)
        self.check_objective(self.objective)
        filing = [each for each in self.pieces.values() if each not in (self.uplink, self.clients)]
        self.clients = shared_clients(self.clients, self.trainer, filing)
        self.selection.check_weighting(self.aggregator.first.by_size)
        self.schedule.check(self.pieces)
        self.models.check_shared()
        rounds = requirements.rounds_asked(self.trainer, self.models.version) if stage == "fit" else None
        check_optimizers(self.server_optimizer, parameters_of(self.net).values(), self.local)
        facts = facts_of(self, data, rounds)
        for piece in self.pieces.values():
            piece.setup(facts.known_to(piece))
        if self._checked_data is not data:
            part = self.parts.of_level if self.check_nesting else None
            requirements.check_nets(self.levels.inspect, data, self.objective, part, self.predict, self.training_flops)
            self._checked_data = data
        self._assemble()
        if stage == "fit":
            writing.bind(self.trainer, self.pieces)

    def _assemble(self) -> None:
        """Build the round and the evaluation, for the present data and number of models."""
        tried = len(self.models) if self.clustering.asks else int(self.aggregator.first.asks_losses)
        entries, unshared, part_bytes, down = self.task_parts.predicted()
        known = (self.data.sizes, self.local.epochs, entries, self.levels.flops, tried, unshared, part_bytes, down)
        self.forecast = Forecast(self.fleet, *known, requirements.itemsize(self.trainer))
        self.assignment.foresee(self.forecast.outlook(self.ledger.deadline))
        costs, policies = (self.ledger, self.downloads, self.forecast), (self.schedule, self.selection, self.local)
        probing = Probing(self.task_parts, self.assignment, self.clustering, self.clients, *costs)
        pieces = list(self.pieces.values())
        self.round = Round(pieces, *policies, probing, self.clients, self.server, self.hosting)
        gathering = Gathering(probing, self.hosting, self.fleet, self.seed)
        scoring = (self.objective, self.predict_heads, self.restrict)
        self.evaluation = Evaluation(self.data, gathering, *scoring, self.personal)

    def configure_optimizers(self) -> Any:
        """Return the server's optimizer, and the optimizer that holds the clients' learning rate, with its schedule."""
        carrier = self.local.optimizer([nn.Parameter(torch.zeros(1))])
        schedules = [] if self.local.scheduler is None else [self.local.scheduler(carrier)]
        return [self.models.optimizer(self.server_optimizer), carrier], schedules

    def on_train_start(self) -> None:
        """Prepare training and the run folder, which drops the rows of rounds that will run again."""
        requirements.note_second_fit(self.models.version, self.current_epoch)
        self.hosting.open(self.data)
        for piece in self.pieces.values():
            piece.begin()
        for folder in writing.run_folders(self.loggers):
            writing.go_on(folder, self.models.version, self.levels, self.objective.headline)
            writing.note_start(folder, self.data, self.objective, self.device)
            sizes, down = self.task_parts.upload_sizes(self.data), self.forecast.down_bytes()
            save_levels(folder, level_costs(self.levels, sizes, down))

    def training_step(self, batch: object, batch_idx: int) -> None:
        """Run one round."""
        server, carrier = cast(list[LightningOptimizer], self.optimizers())
        round = self.models.version  # equals Lightning's epoch, except in a second fit, which goes on counting
        columns = self.round.run(round, carrier.param_groups[0]["lr"], server, follower(self))
        writing.save_values(self, self.data, round, self.round.values)
        writing.save_timeline(self, self.schedule.rows())
        writing.save_clusters(self, self.clustering, len(self.models))
        if self.lr_schedulers() is not None:
            carrier.optimizer.step()  # moves nothing; the schedule expects an optimizer step before its own
            self.lr_schedulers().step()  # type: ignore[union-attr]
        writing.log_columns(self, {**columns, **self.server.costs()}, self.models.last_round)

    def on_train_end(self) -> None:
        """Write the tables of the assignment, whose rows grow with every round."""
        writing.save_tables(self, self.assignment.tables())

    def on_validation_epoch_start(self) -> None:
        """Prepare all levels for the present global models."""
        with self._precision_context():  # Lightning enters the trainer's precision for steps, not for this hook
            if self.evaluation.begin():
                writing.save_clusters(self, self.clustering, len(self.models))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluate a batch of the held-out training data (loader 0) or of the clients' test data (loader 1)."""
        if dataloader_idx == 0:
            self.evaluation.measure_levels(batch)
        else:
            self.evaluation.measure_clients(batch)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/*`` and ``local/*``; in training log the round's costs again, with those of the evaluation."""
        costs = self.server.costs() if self.trainer.state.fn == "fit" else {}
        writing.log_columns(self, {**self.evaluation.columns("val"), **costs}, self.models.last_round)

    on_test_epoch_start = on_validation_epoch_start

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Evaluate a batch of the test set."""
        self.evaluation.measure_all(batch)

    def on_test_epoch_end(self) -> None:
        """Log ``test/*`` and ``local/*``; write ``clients.csv``, one row per client."""
        writing.save_tables(self, {"clients": self.evaluation.client_rows()})
        writing.log_columns(self, self.evaluation.columns("test"), self.models.last_round)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the logits (N, K) of a batch; see :class:`Prediction`."""
        data = requirements.known_data(self)
        if batch_idx == dataloader_idx == 0:
            self.prediction.begin(None if data is None else self.on_validation_epoch_start)
        return self.predict(self.prediction.net, self.prediction.inputs(batch, data))

    def teardown(self, stage: str) -> None:
        """End the executor's processes, and drop the caches that depend on the device or the data set."""
        self.hosting.close()
        self.run_state.forget()
        forget_cached(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the federation's state to a checkpoint."""
        checkpoint[KEY] = self.run_state.saved(checkpoint, self.data, self.pieces, self.trainer.strategy.checkpoint_io)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the federation's state, before Lightning loads its own; refuse another federation's checkpoint."""
        data = requirements.known_data(self)
        training = data is not None and bool(self.trainer.training)
        if data is not None and not training:
            writing.find(self.trainer, self.pieces)
        self.run_state.load(checkpoint, data, self.pieces, training)
        if self.trainer.precision == "64-true" if data is not None else requirements.is_double(checkpoint):
            self.double()  # Lightning does so only after loading the checkpoint's weights, rounded to float32
        if data is not None:
            self._assemble()
        if training:
            self.run_state.rescale(checkpoint, *self.configure_optimizers())
            writing.check_rounds(self.loggers, self.models.version)

    def _loaded(self, models: nn.Module, keys: Any) -> None:
        if requirements.known_data(self) is None:  # with data, the trainer first moves the module to its device
            self.hosting.loaded()

    def _method(self) -> str:
        """Return the method and its settings as short text, without settings that have an entry in a fingerprint."""
        others = [*inspect.signature(FederatedModule).parameters, *self.pieces]
        return described(type(self).__name__, settings_of(self, less=others))
