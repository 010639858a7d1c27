"""Local rounds by Flower's simulation engine: a ServerApp that sends parameters, and a ClientApp that trains them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import cache
from queue import Queue
from threading import Thread
from typing import Any, TypeAlias

import torch
from bare import batches
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from work import CLIP, LR, MEAN, MOMENTUM, STD, WEIGHT_DECAY, Setting, Work

Parameters: TypeAlias = dict[str, Tensor]


@cache
def samples_of_clients(setting: Setting) -> list[tuple[Tensor, Tensor]]:
    """Return images and targets of every client, made once in each process."""
    torch.set_num_threads(1)
    return setting.samples_of_clients()


def train(setting: Setting, message: Message) -> Message:
    """Return a reply with the parameters after the training of a client."""
    config = message.content.config_records["config"]
    client, level, seed = int(str(config["client"])), str(config["level"]), int(str(config["seed"]))
    images, targets = samples_of_clients(setting)[client]
    absent_K = torch.bincount(targets, minlength=10) == 0
    net = setting.level_net(level)
    net.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    net.train()
    optimizer = SGD(net.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    random = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(setting.epochs):
        for batch in batches(torch.randperm(len(targets), generator=random), setting.batch_size):
            inputs = images[batch].float().sub_(255 * MEAN).div_(255 * STD)
            loss = F.cross_entropy(net(inputs).masked_fill(absent_K, 0.0), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
            total += loss.item() * len(batch)
    metrics = MetricRecord({"loss": total / (setting.epochs * len(targets)), "num-examples": len(targets)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


def client_app(setting: Setting) -> ClientApp:
    """Return the app that trains clients."""
    app = ClientApp()

    @app.train()
    def trained(message: Message, context: Context) -> Message:
        return train(setting, message)

    return app


class FlowerPeer:
    """A simulation that runs until :meth:`close`; its ServerApp runs a round on request.

    Args:
        actors: number of processes, with one thread each.
        setting: the work of a round, at one level. There is a node for every client.
        tensors: the global model at that level.
    """

    def __init__(self, actors: int, setting: Setting, tensors: Sequence[Tensor]) -> None:
        self.setting, self.actors = setting, actors
        names = [name for name, _ in setting.level_net(setting.levels).named_parameters()]
        self.start: Parameters = {name: value.clone() for name, value in zip(names, tensors, strict=True)}
        self.asked: Queue[Sequence[Work] | None] = Queue()
        self.answers: Queue[list[Parameters] | Exception] = Queue()
        self.thread = Thread(target=self._simulate, daemon=True)
        self.thread.start()

    def _simulate(self) -> None:
        logging.getLogger("flwr").setLevel(logging.ERROR)
        app = ServerApp()

        @app.main()
        def serve(grid: Grid, context: Context) -> None:
            while len(list(grid.get_node_ids())) < self.setting.clients:  # nodes join after the start of the ServerApp
                time.sleep(0.1)
            while (work := self.asked.get()) is not None:
                self.answers.put(self._round(grid, work))

        resources: Any = {
            "init_args": {"num_cpus": self.actors, "logging_level": logging.ERROR},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        }
        try:
            run_simulation(app, client_app(self.setting), self.setting.clients, backend_config=resources)
        except Exception as error:  # round() waits for an answer, and raises it
            self.answers.put(error)

    def _round(self, grid: Grid, work: Sequence[Work]) -> list[Parameters]:
        nodes, arrays = sorted(grid.get_node_ids()), ArrayRecord(self.start)
        messages = []
        for client, level, seed in work:
            config = ConfigRecord({"client": client, "level": level, "seed": seed})
            content = RecordDict({"arrays": arrays, "config": config})
            messages.append(Message(content=content, message_type="train", dst_node_id=nodes[client]))
        replies = list(grid.send_and_receive(messages))
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(f"Expected every client to train but one failed: {reply.error.reason}")
        return [reply.content.array_records["arrays"].to_torch_state_dict() for reply in replies]

    def round(self, work: Sequence[Work]) -> list[Parameters]:
        """Let the ServerApp send a message to every client; return their parameters in the order of arrival.

        Raises:
            Exception: the error that ended the simulation.
        """
        self.asked.put(work)
        answer = self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def total(self, trained: list[Parameters]) -> Tensor:
        """Return the sum of the deltas."""
        deltas = [torch.cat([(each[name] - value).flatten() for name, value in self.start.items()]) for each in trained]
        return torch.stack(deltas).sum(0)

    def close(self) -> None:
        """Stop the simulation and Ray."""
        self.asked.put(None)
        self.thread.join()
