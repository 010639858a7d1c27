"""The ServerApp that Flower runs: a run of ``hetfl fit`` with remote clients."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from httpx import HTTPError
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback

from hetfl.cli.app import FederatedCLI
from hetfl.cli.errors import condense
from hetfl.cli.one_line import command_line
from hetfl.cli.parser import check_arguments
from hetfl.cli.starting import start
from hetfl.cli.trust import USUAL
from hetfl.files import write_whole
from hetfl.flower.bound import ServerBound
from hetfl.flower.clients import FlowerClients
from hetfl.flower.command.operating import TellsFolder, ending_at_once, events_of, warnings_as_events, working_in
from hetfl.flower.nodes import Nodes
from hetfl.flower.patience import Patience
from hetfl.flower.post import FlowerPost
from hetfl.flower.register import Register
from hetfl.flower.standing import StandingFile
from hetfl.flower.surroundings import surroundings
from hetfl.reading import LARGEST_TEXT, parse_json

server_app = ServerApp()


class ServingCLI(FederatedCLI):
    """Runs with clients on the nodes of a Grid.

    Args:
        args: those of the CLI.
        grid: Flower's.
        standing: takes the nodes' standing.
        settings: of the command: the patience, the home folder, the names of nodes, and the largest norm of an update,
            inf for no bound; None: the bound follows the updates, unless the model has a bound among its hooks.
        kwargs: those of the CLI.
    """

    usually_trusted: ClassVar[Sequence[str] | None] = USUAL

    def __init__(
        self, *args: Any, grid: Grid, standing: StandingFile, settings: Mapping[str, Any], **kwargs: Any
    ) -> None:
        self.grid, self.settings = grid, settings
        self.home, self.standing = Path(settings["home"]), standing
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


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Run ``hetfl fit``, and write its output and its exit status to files, apart from Flower's log."""
    settings = parse_json(str(context.run_config["settings"]), LARGEST_TEXT)
    home, standing, status = Path(settings["home"]), StandingFile(), 1
    with (
        (home / "output").open("a", buffering=1, encoding="utf-8") as file,
        redirect_stdout(file),
        redirect_stderr(file),
        working_in(settings["folder"]),
    ):
        write_whole(home / "pid", str(os.getpid()).encode())
        try:
            with ending_at_once(), command_line(), warnings_as_events(events_of(home)):
                args = ["fit", *settings["arguments"]]
                check_arguments(args)
                start(args, cli=partial(ServingCLI, grid=grid, standing=standing, settings=settings))
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
            standing.end()
            write_whole(home / "status", str(status).encode())
