"""The ClientApp that Flower runs: a node.

It is apart from the ServerApp, whose modules take memory that a node has not to spare.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from lightning import LightningDataModule

from hetfl.cli.app import FederatedCLI, FederatedTrainer
from hetfl.cli.parser import check_arguments
from hetfl.cli.starting import start
from hetfl.cli.trust import USUAL
from hetfl.federation import FederatedModule
from hetfl.flower.command.checks import numbers
from hetfl.flower.command.operating import working_in
from hetfl.flower.events import Reporter, silent
from hetfl.flower.messages import answer_records, read_request
from hetfl.flower.node import Node
from hetfl.flower.records import MalformedMessage
from hetfl.flower.states import ClientStates

client_app = ClientApp()

node: Node | None = None
"""The node of this process; None until it is made."""


class NodeCLI(FederatedCLI):
    """Makes a node's objects; by default its configuration may only name classes of the usual packages."""

    usually_trusted: ClassVar[Sequence[str] | None] = USUAL


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
        with working_in(str(config.get("folder", "."))):
            args = shlex.split(str(config["arguments"]))
            node = make_node(args, numbers(str(config["clients"])), str(config["states"]))
    try:
        request = read_request(message.content)
    except MalformedMessage as error:
        node.report("refused", f"a message of the server cannot be read: {error}", node.name)
        raise
    return Message(answer_records(node.answer(request)), reply_to=message)
