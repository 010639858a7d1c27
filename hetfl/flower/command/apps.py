"""What Flower runs: the ServerApp is a run of ``hetfl fit`` whose clients are elsewhere, the ClientApp is a node."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from httpx import HTTPError
from lightning import LightningDataModule

from hetfl.cli.app import FederatedCLI, FederatedTrainer
from hetfl.cli.errors import condense
from hetfl.cli.parser import check_arguments
from hetfl.cli.starting import command_line, start
from hetfl.cli.trust import USUAL
from hetfl.federation import FederatedModule
from hetfl.files import write_whole
from hetfl.flower.bound import ServerBound
from hetfl.flower.clients import FlowerClients
from hetfl.flower.command.checks import numbers
from hetfl.flower.messages import answer_records, read_request
from hetfl.flower.node import Node
from hetfl.flower.nodes import Nodes
from hetfl.flower.patience import Patience
from hetfl.flower.post import FlowerPost
from hetfl.flower.states import ClientStates
from hetfl.reading import LARGEST_TEXT, parse_json

server_app = ServerApp()
client_app = ClientApp()

node: Node | None = None
"""This process's node, once it has been made."""


class NodeCLI(FederatedCLI):
    """Makes what a node consists of; its configuration may name the usual packages alone, unless told otherwise."""

    usually_trusted: ClassVar[Sequence[str] | None] = USUAL


class ServingCLI(FederatedCLI):
    """Runs with clients on the nodes of a Grid.

    Args:
        args: those of the CLI.
        grid: Flower's.
        patience: when a round has waited long enough.
        max_norm: largest norm of an update; None: any.
        kwargs: those of the CLI.
    """

    usually_trusted: ClassVar[Sequence[str] | None] = USUAL

    def __init__(self, *args: Any, grid: Grid, patience: Patience, max_norm: float | None, **kwargs: Any) -> None:
        self.grid, self.patience, self.max_norm = grid, patience, max_norm
        super().__init__(*args, **kwargs)

    def instantiate_classes(self) -> None:
        """Make data, model and trainer, and let the model's clients be Flower's."""
        super().instantiate_classes()
        self.model.clients = FlowerClients(self.model, Nodes(FlowerPost(self.grid)), self.patience)
        self.model.hooks.append(ServerBound(self.max_norm))


class _Introducing(FederatedTrainer):
    """In place of a description, only has the module meet its data."""

    def describe(
        self,
        model: FederatedModule,
        datamodule: LightningDataModule,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        self.introduce(model, datamodule)


def make_node(args: Sequence[str], clients: Sequence[int], states: str) -> Node:
    """Return a node.

    Args:
        args: those of ``hetfl fit``, without the verb.
        clients: which it serves.
        states: folder of what belongs to them.

    Raises:
        ConfigurationError: something is wrong with the settings.
    """
    verb = ["describe", *args]
    check_arguments(verb)
    cli = start(verb, cli=NodeCLI, trainer=_Introducing)
    cli.trainer.precision_plugin.convert_module(cli.model)  # in place
    cli.model.to(cli.trainer.strategy.root_device)
    return Node(cli.model, cli.datamodule, frozenset(clients), ClientStates(Path(states)))


@client_app.train()
def answer(message: Message, context: Context) -> Message:
    """Answer a request; the node is made of the settings of its SuperNode at the first one of a process."""
    global node
    if node is None:
        given = context.node_config
        with _in_folder(str(given.get("folder", "."))):
            args = shlex.split(str(given["arguments"]))
            node = make_node(args, numbers(str(given["clients"])), str(given["states"]))
    return Message(answer_records(node.answer(read_request(message.content))), reply_to=message)


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Run; what the run prints goes to a file, and so does how it ended: Flower has its own log."""
    settings = parse_json(str(context.run_config["settings"]), LARGEST_TEXT)
    output = Path(settings["output"])
    status = 1
    with (
        output.open("a", buffering=1, encoding="utf-8") as file,
        redirect_stdout(file),
        redirect_stderr(file),
        _in_folder(settings["folder"]),
    ):
        write_whole(output.with_name("pid"), str(os.getpid()).encode())
        try:
            with command_line():
                args = ["fit", *settings["arguments"]]
                check_arguments(args)
                patience = Patience(**settings["patience"])
                start(args, cli=partial(ServingCLI, grid=grid, patience=patience, max_norm=settings["max_norm"]))
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except HTTPError as error:
            sys.stderr.write(
                f"hetfl: error: Expected the SuperLink to go on with the run but got {condense(str(error))}: go on "
                "from its last checkpoint (--ckpt_path)\n"
            )
        except Exception:
            traceback.print_exc()
        finally:
            write_whole(output.with_name("status"), str(status).encode())


@contextmanager
def _in_folder(folder: str) -> Iterator[None]:
    """Work where the command was typed: relative paths are the user's."""
    before = Path.cwd()
    os.chdir(folder)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        yield
    finally:
        os.chdir(before)
