"""Configurations that try to run a command: each attack creates the file ``ran`` if it is called."""

from __future__ import annotations

TOUCH = "{class_path: os.system, init_args: {command: touch ran}}"
CALL = "{class_path: subprocess.check_call, init_args: {popenargs: [touch, ran]}}"
POPEN = "{class_path: subprocess.Popen, init_args: {args: [touch, ran]}}"
USER_FUNCTION = "{class_path: attack.touch, init_args: {path: ran}}"
"""A function of the user's module, which no list of Python's modules contains."""
TYPED = "{class_path: attack.typed, init_args: {path: ran}}"
"""A function whose annotation claims that it returns a net."""
CYCLIC = "{class_path: torch.optim.lr_scheduler.CyclicLR, init_args: {base_lr: 0.1, max_lr: 0.2, scale_fn: %s}}"
LAMBDA = "{class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: {setup: %s, on_fit_start: %s}}"
STRATEGY = "{class_path: lightning.pytorch.strategies.DDPStrategy, init_args: {ddp_comm_hook: %s}}"
NET = f"model: {{init_args: {{net: {TOUCH}}}}}"
BUDGETS = "{by: params, budgets: [1.0], reference: %s}"

ATTACK = """
from pathlib import Path
from torch import nn
from torch.optim import SGD, Optimizer

def touch(path="ran", **given):
    Path(path).touch()

def typed(path: str = "ran") -> nn.Module:
    Path(path).touch()
    return nn.Identity()

class Touching:
    def __init__(self, path: str = "ran") -> None:
        Path(path).touch()

    def __call__(self, *args, **given):
        return 0

class Net(nn.Module):
    def __init__(self, width: float = 1.0, extra=None, **more) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))

def make(*, width: float = 1.0) -> nn.Module:
    return Net()

def optimize(parameters) -> Optimizer:
    return SGD(parameters, lr=0.1)
"""
"""Source of the module ``attack``."""

RUNS: dict[str, list[str]] = {
    "a function as net": ["--model.net", TOUCH],
    "its path alone": ["--model.net=os.system"],
    "its path by key": ["--model.net.class_path=os.system", "--model.net.init_args.command=touch ran"],
    "another function as net": ["--model.net", CALL],
    "a class that runs a command as net": ["--model.net", POPEN],
    "a user's function as net": ["--model.net", USER_FUNCTION],
    "a function annotated to return a net": ["--model.net", TYPED],
    "a path to a user's function": ["--model.net=attack.touch"],
    "a class that is no net": ["--model.net=attack.Touching"],
    "in YAML as text": ["-c", NET],
    "in a file": ["-c", "net.yaml"],
    "in a file that a setting names": ["--model.net=inner.yaml"],
    "as server optimizer": ["--model.server_optimizer", TOUCH],
    "as server optimizer, a path alone": ["--model.server_optimizer=attack.touch"],
    "as server optimizer, a class": ["--model.server_optimizer=attack.Touching"],
    "as optimizer of the clients": ["--model.local.optimizer", TOUCH],
    "as optimizer of the clients, a user's function": ["--model.local.optimizer", USER_FUNCTION],
    "as their scheduler": ["--model.local.scheduler", USER_FUNCTION],
    "as their scheduler, a path alone": ["--model.local.scheduler=attack.touch"],
    "as their scheduler's function": ["--model.local.scheduler", CYCLIC % USER_FUNCTION],
    "as reference of budgets": ["--model.levels", BUDGETS % USER_FUNCTION],
    "as reference of budgets, a path alone": ["--model.levels", BUDGETS % "attack.touch"],
    "as callback's function": ["--trainer.callbacks", f"[{LAMBDA % (USER_FUNCTION, USER_FUNCTION)}]"],
    "as callback": ["--trainer.callbacks", f"[{USER_FUNCTION}]"],
    "as strategy's hook": ["--trainer.strategy", STRATEGY % USER_FUNCTION],
    "as plugin": ["--trainer.plugins", f"[{USER_FUNCTION}]"],
    "as logger": ["--trainer.logger", f"[{POPEN}]"],
    "as model": ["--model", USER_FUNCTION],
    "as data": ["--data", POPEN],
    "as partitioner": ["--data.partitioner", TOUCH],
    "as compressor": ["--model.uplink.compressor", USER_FUNCTION],
    "for an argument of any type": ["--model.net=attack.Net", "--model.net.extra", POPEN],
    "for an argument of any type, a user's function": ["--model.net=attack.Net", "--model.net.extra", USER_FUNCTION],
    "YAML's own way": ["-c", "python.yaml"],
}
"""Arguments after those of a demo."""

FILES = {
    "attack.py": ATTACK,
    "net.yaml": f"{NET}\n",
    "inner.yaml": f"{USER_FUNCTION}\n",
    "python.yaml": "model: !!python/object/apply:os.system [touch ran]\n",
}

IMPORTING = "open('ran', 'w').close()\nfrom torch import nn\nclass Thing(nn.Module): ...\ndef function(): ...\n"
"""Source of the module ``stranger``, whose import is the attack."""
THING = "{class_path: stranger.Thing}"
TENSORBOARD = "{class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: tb}, dict_kwargs: %s}"

IMPORTS: dict[str, list[str]] = {
    "net": ["--model.net", THING],
    "net, a path alone": ["--model.net=stranger.Thing"],
    "net, by key": ["--model.net.class_path=stranger.Thing"],
    "net, a function": ["--model.net=stranger.function"],
    "reference": ["--model.levels", BUDGETS % "stranger.function"],
    "optimizer": ["--model.local.optimizer", THING],
    "function of a scheduler": ["--model.local.scheduler", CYCLIC % "stranger.function"],
    "model": ["--model=stranger.Thing"],
    "data": ["--data=stranger.Thing"],
    "argument of an argument": ["--data.partitioner", "{class_path: hetfl.data.FlowerPartitioner, init_args: "
                                "{partitioner: {class_path: stranger.Thing}}}"],
    "callbacks": ["--trainer.callbacks", f"[{THING}]"],
    "functions of callbacks": ["--trainer.callbacks", f"[{LAMBDA % ('stranger.function', 'stranger.function')}]"],
    "loggers": ["--trainer.logger", f"[{THING}]"],
    "plugins": ["--trainer.plugins", f"[{THING}]"],
    "keyword arguments of a logger": ["--trainer.logger", f"[{TENSORBOARD % '{x: [{class_path: stranger.Thing}]}'}]"],
    "through a trusted package": ["--model.net=torch.nn.modules.module.OrderedDict"],
    "help": ["--model.help=stranger.Thing"],
}  # fmt: skip
"""Arguments that name code of an untrusted package."""
