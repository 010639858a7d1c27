"""The short help of the command line, which needs no other module of hetfl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

HELP = ("-h", "--help")
"""Options that print the short help."""
ALL = "--help-all"
"""Option that prints every setting of a verb."""
COLUMNS = 80
"""Width of a terminal."""

VERBS: Mapping[str, tuple[str, str]] = {
    "init": ("[FOLDER] [--data KIND] [--method NAME]", "write a small project with a net, data and a test of your own"),
    "configs": ("[NAME]", "list the packaged configurations, or print one"),
    "data": ("-c FILE", "show the clients' data, without a run"),
    "describe": ("-c FILE", "show levels, FLOPs, bytes per round, fleet and data, without a run"),
    "fit": ("-c FILE", "train a federation; the results are in a run folder"),
    "resume": ("RUN", "go on with a run that stopped"),
    "validate": ("-c FILE --ckpt_path FILE", "score a checkpoint on the held-out samples"),
    "test": ("-c FILE --ckpt_path FILE", "score a checkpoint on the test samples"),
    "compare": ("-r NAME=FILE -r NAME=FILE --out DIR", "run configurations with several seeds, and report"),
    "report": ("RUN... --out DIR", "write a report of runs"),
    "export": ("RUN --level LEVEL", "write the sub-model of one level to a file"),
    "unlearn": ("RUN --class K", "prune the channels that speak for a class, and train on"),
    "flower": ("server|client|demo|...", "run a server and nodes on several machines, with Flower"),
}
"""By verb its arguments, and what it does, in the order in which they are used."""

OF_SETTINGS = ("fit", "validate", "test", "describe", "export")
"""Verbs of Lightning's CLI, whose settings are those of a run."""

SETTINGS: Mapping[str, Mapping[str, str]] = {
    "Data": {
        "--data CLASS": "hetfl.data.Digits, MNIST, CSVData, ...",
        "--data.num_clients N": "number of clients",
        "--data.partitioner CLASS": "hetfl.data.IID, Dirichlet, ...",
    },
    "Method": {
        "--model CLASS": "hetfl.FedAvg, HeteroFL, DepthFL, ...",
        "--model.net CLASS": "the net: takes width, depth or both",
        "--model.levels LEVELS": "sub-models: {a: {width: 1}, ...}",
        "--model.assignment CLASS": "which client has which level",
        "--model.parts CLASS": "which part of the model a client holds",
        "--model.aggregator CLASS": "how updates become a server step",
    },
    "Rounds and clients": {
        "--trainer.max_epochs N": "number of rounds",
        "--model.selection.clients_per_round N": "size of a cohort",
        "--model.fleet CLASS": "devices: speeds, links, availability",
        "--model.local.epochs N": "passes of a client over its data",
        "--model.local.batch_size N": "samples in a step",
        "--model.local.optimizer.lr RATE": "learning rate of clients",
    },
    "Messages": {
        "--model.uplink.compressor CLASS": "hetfl.compression.TopK, ...",
        "--model.downlink CLASS": "hetfl.downlink.Downlink",
    },
    "Run": {
        "--seed_everything N": "the seed of everything",
        "--data.seed N": "its own seed for the data",
        "--model.executor CLASS": "hetfl.local.Workers, Stacked, ...",
        "--trainer.check_val_every_n_epoch N": "rounds between two validations",
        "--trainer.logger.name NAME": "the run folder is in runs/NAME/",
        "--plots_every K": "draw plots/ every K rounds, too",
        "--print_config": "every setting with its value; no run",
    },
}
"""Settings that people use, by subject."""

OF_EXPORT: Mapping[str, Mapping[str, str]] = {
    "Export": {
        "--level LEVEL": "name of the level; default: the largest",
        "--format FORMAT": "safetensors, onnx or peft",
        "--out FILE": "a file, or a folder",
        "--cluster NUMBER": "the global model, if there are several",
    }
}


def asked_for_help(args: Sequence[str]) -> str | None:
    """Return the short help that arguments ask for; None if they do not, or if the verb has its own help.

    >>> asked_for_help(["fit", "-c", "demo"]) is None
    True
    """
    if not args or args[0] in HELP:
        return of_all()
    if not any(argument in HELP for argument in args[1:]):
        return None
    if args[0] == "resume":
        return _usage("resume") + "\n\nOther options are settings of the run: see hetfl fit --help.\n"
    return of_verb(args[0]) if args[0] in OF_SETTINGS else None


def of_all() -> str:
    """Return the help of the command, a line for every verb."""
    width = max(map(len, VERBS)) + 2
    lines = [f"  {verb:<{width}}{does}" for verb, (_, does) in VERBS.items()]
    return "\n".join(
        [
            "usage: hetfl VERB ...",
            "",
            "Federated learning in which every client trains as much of the model as it can",
            "afford.",
            "",
            *lines,
            "",
            "hetfl VERB --help says more of a verb. --debug shows tracebacks, --version the",
            "version. Try: hetfl fit -c demo",
            "",
        ]
    )


def of_verb(verb: str) -> str:
    """Return the help of a verb of Lightning's CLI: the settings that people use, by subject.

    Args:
        verb: one of :data:`OF_SETTINGS`.
    """
    about = OF_EXPORT if verb == "export" else SETTINGS
    width = max(len(option) for settings in SETTINGS.values() for option in settings) + 2
    lines = [
        _usage(verb),
        "",
        "  -c FILE  settings: a file, or a name that hetfl configs lists; repeat it to",
        "           stack them. Later files override earlier ones, and options all files.",
    ]
    for subject, settings in about.items():
        lines += ["", subject, *(f"  {option:<{width}}{meaning}" for option, meaning in settings.items())]
    lines += [
        "",
        "An argument of a class is one level deeper: --model.net.hidden '[8, 16]'.",
        f"hetfl {verb} --model.net.help CLASS lists the arguments of a class,",
        f"hetfl {verb} {ALL} all settings{' of a run' if verb == 'export' else ''}.",
        "",
    ]
    return "\n".join(lines)


def _usage(verb: str) -> str:
    arguments, does = VERBS[verb]
    return f"usage: hetfl {verb} {arguments} [--KEY VALUE ...]\n\n" + fill(f"{does[0].upper()}{does[1:]}.", COLUMNS)
