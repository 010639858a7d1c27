"""The apps that Flower runs: the ServerApp is a run of ``hetfl fit`` with remote clients, the ClientApp is a node."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from httpx import HTTPError
from jsonargparse import Namespace
from lightning import LightningDataModule
from lightning.pytorch.callbacks import Callback

from hetfl.cli.app import FederatedCLI, FederatedTrainer
from hetfl.cli.errors import condense
from hetfl.cli.one_line import command_line
from hetfl.cli.parser import check_arguments
from hetfl.cli.starting import start
from hetfl.cli.trust import USUAL
from hetfl.federation import FederatedModule
from hetfl.files import write_whole
from hetfl.flower.bound import ServerBound
from hetfl.flower.clients import FlowerClients
from hetfl.flower.command.checks import numbers
from hetfl.flower.command.operating import TellsFolder, ending_at_once, events_of, warnings_as_events
from hetfl.flower.events import Reporter, silent
from hetfl.flower.messages import answer_records, read_request
from hetfl.flower.node import Node
from hetfl.flower.nodes import Nodes
from hetfl.flower.patience import Patience
from hetfl.flower.post import FlowerPost
from hetfl.flower.records import MalformedMessage
from hetfl.flower.register import Register
from hetfl.flower.standing import StandingFile
from hetfl.flower.states import ClientStates
from hetfl.flower.surroundings import surroundings
from hetfl.reading import LARGEST_TEXT, parse_json

server_app = ServerApp()
client_app = ClientApp()

node: Node | None = None
"""The node of this process; None until it is made."""


class NodeCLI(FederatedCLI):
    """Makes a node's objects; by default its configuration may only name classes of the usual packages."""

    usually_trusted: ClassVar[Sequence[str] | None] = USUAL


class ServingCLI(FederatedCLI):
    """Runs with clients on the nodes of a Grid.

    Args:
        args: those of the CLI.
        grid: Flower's.
        settings: of the command: the patience, the home folder, the names of nodes, and the largest norm of an update,
            inf for no bound; None: the bound follows the updates, unless the model has a bound among its hooks.
        kwargs: those of the CLI.
    """

    usually_trusted: ClassVar[Sequence[str] | None] = USUAL

    def __init__(self, *args: Any, grid: Grid, settings: Mapping[str, Any], **kwargs: Any) -> None:
        self.grid, self.settings = grid, settings
        self.home, self.standing = Path(settings["home"]), StandingFile()
        super().__init__(*args, **kwargs)

    def instantiate_classes(self) -> None:
        """Make data, model and trainer, and replace the model's clients by those on Flower."""
        super().instantiate_classes()
        given = self.settings
        nodes = Nodes(
            FlowerPost(self.grid),
            register=Register(events_of(self.home), self.standing),
            names={int(node): name for node, name in given["names"].items()},
            surroundings=surroundings(self.trainer.strategy.root_device),
            stopped=lambda: self.stop.signal,
        )
        self.model.clients = FlowerClients(self.model, nodes, Patience(**given["patience"]))
        self.model.hooks.append(ServerBound.beside(self.model.hooks, given["max_norm"]))

    def _callbacks(self, config: Namespace, users: list[Callback]) -> list[Callback]:
        return [*super()._callbacks(config, users), TellsFolder(self.home, self.standing)]


class _Introducing(FederatedTrainer):
    """A trainer whose ``describe`` only sets the module up with its data."""

    def describe(
        self,
        model: FederatedModule,
        datamodule: LightningDataModule,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        self.introduce(model, datamodule)


def make_node(
    args: Sequence[str], clients: Sequence[int], states: str, name: str = "", report: Reporter = silent
) -> Node:
    """Return a node.

    Args:
        args: those of ``hetfl fit``, without the subcommand.
        clients: ids of the clients that the node serves.
        states: folder of their states.
        name: of the node, for the server's operator.
        report: takes events for the node's operator.

    Raises:
        ConfigurationError: a setting is invalid.
    """
    verb = ["describe", *args]
    check_arguments(verb)
    cli = start(verb, cli=NodeCLI, trainer=_Introducing)
    cli.trainer.precision_plugin.convert_module(cli.model)  # in place
    cli.model.to(cli.trainer.strategy.root_device)
    return Node(cli.model, cli.datamodule, frozenset(clients), ClientStates(Path(states)), name, report)


@client_app.train()
def answer(message: Message, context: Context) -> Message:
    """Answer a request; the first request of a process makes the node, from the settings of its SuperNode."""
    global node
    if node is None:
        config = context.node_config
        with _in_folder(str(config.get("folder", "."))):
            args = shlex.split(str(config["arguments"]))
            node = make_node(args, numbers(str(config["clients"])), str(config["states"]))
    try:
        request = read_request(message.content)
    except MalformedMessage as error:
        node.report("refused", f"a message of the server cannot be read: {error}", node.name)
        raise
    return Message(answer_records(node.answer(request)), reply_to=message)


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Run ``hetfl fit``, and write its output and its exit status to files, apart from Flower's log."""
    settings = parse_json(str(context.run_config["settings"]), LARGEST_TEXT)
    home, status = Path(settings["home"]), 1
    with (
        (home / "output").open("a", buffering=1, encoding="utf-8") as file,
        redirect_stdout(file),
        redirect_stderr(file),
        _in_folder(settings["folder"]),
    ):
        write_whole(home / "pid", str(os.getpid()).encode())
        try:
            with ending_at_once(), command_line(), warnings_as_events(events_of(home)):
                args = ["fit", *settings["arguments"]]
                check_arguments(args)
                start(args, cli=partial(ServingCLI, grid=grid, settings=settings))
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except HTTPError as error:
            sys.stderr.write(
                f"hetfl: error: Expected the SuperLink to go on with the run but got {condense(str(error))}: resume "
                "it from its last checkpoint (--ckpt_path)\n"
            )
        except Exception:
            traceback.print_exc()
        finally:
            write_whole(home / "status", str(status).encode())


@contextmanager
def _in_folder(folder: str) -> Iterator[None]:
    """Work in the folder where the user ran the command, as paths may be relative to it."""
    before = Path.cwd()
    os.chdir(folder)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        yield
    finally:
        os.chdir(before)
