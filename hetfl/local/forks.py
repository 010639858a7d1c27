"""Processes that a run forks to train clients: whether they can, the memory for results, and what they do."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.local.bench import Bench
from hetfl.local.executor import InProcess, Result
from hetfl.local.heap import keep_freed_memory
from hetfl.signals import SIGNALS
from hetfl.types import NOTHING

NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""Linux's ``MAP_NORESERVE``, which Python's ``mmap`` does not name."""


def fork_refusal() -> str:
    """Return why forked processes cannot train here, for people; an empty string: they can.

    In a process that sees an accelerator, torch's first backward pass starts threads even if no tensor is there. Torch
    then refuses backward passes in all forks of this process.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        return "a platform that cannot fork"
    if torch.accelerator.is_available():
        name = torch.accelerator.current_accelerator()
        return f"a visible accelerator ({name}; CUDA_VISIBLE_DEVICES= hides NVIDIA cards)"
    return ""


def shared_memory(size: int) -> mmap.mmap:
    """Return memory that forked processes share.

    Raises:
        ConfigurationError: the system does not give so much address space to one process.
    """
    try:
        # Without a reservation of swap space, which Linux refuses for more than its memory: most is never written.
        return mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | NORESERVE)
    except OSError as error:
        raise ConfigurationError(
            f"Expected {size / 2**30:.1f} GiB of address space for the results of a worker process but got "
            f"{error.strerror!r}: use Sequential"
        ) from error


def serve(bench: Bench, inner: InProcess, connection: Connection, slots: Tensor, others: Sequence[Connection]) -> None:
    """Compute groups until the main process sends None or is gone."""
    for other in others:
        other.close()
    # Ctrl-C, systemd and SLURM signal all processes of a run. The main process stops after its round, which needs its
    # workers; without it they end by themselves.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # More than one thread in a forked process can hang: a fork does not copy OpenMP's threads.
    torch.set_num_threads(1)
    keep_freed_memory()
    inner.open(Bench(bench.problem, bench.data, bench.models))
    # The fork may have happened in the middle of an evaluation.
    with torch.inference_mode(False), torch.enable_grad(), bench.problem.precision_context():
        while True:
            try:
                message = connection.recv()
            except EOFError:
                return
            if message is None:
                return
            job, tasks, slot = message
            try:
                connection.send(_written(inner.work(job, tasks), slots[slot]))
            except (BrokenPipeError, ConnectionResetError):  # the main process gave up, or is gone
                return
            except Exception:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.send(traceback.format_exc())


def _written(results: Sequence[Result], slot_D: Tensor) -> list[tuple[Result, int]]:
    """Write the results' vectors into a slot, one after the other; return the results without them, and their sizes."""
    small, position = [], 0
    for result in results:
        size = result.vector.numel()
        slot_D[position : position + size].copy_(result.vector)
        position += size
        held: dict[str, Any] = {"memory_D": None, "personal": None, "first_D": None, "received": None, "inputs": None}
        task = replace(result.task, part=NOTHING, sent=NOTHING, **held)
        small.append((replace(result, task=task, vector=torch.empty(0)), size))
    return small
