"""Processes for the tests that need some of their own: each is a copy of one that has imported everything.

An import of PyTorch and transformers costs seconds, and a test that kills a process needs several.
"""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.tiny", "paretune.cli", "paretune.search.front", "paretune.tuning"])


def start(
    folder: Path, call: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """Run a call in a process of its own, which Ctrl-C reaches also where the tests are in the background.

    Args:
        folder: What the process prints goes to its files ``stdout`` and ``stderr``; made if absent.
        call: A function that another process can import; what it returns is lost.
        arguments: Of the call.
        environment: Variables to set before the call.

    Returns:
        The running process; its ``exitcode`` is below zero for a signal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    process = _CONTEXT.Process(target=_run, args=(folder, dict(environment or {}), call, arguments))
    process.start()
    return process


def launch(ranks: int, folder: Path, call: Callable[..., Any], *arguments: Any) -> None:
    """Run a call in each process of a distributed run, as a launcher does, over the loopback, to its end.

    Args:
        ranks: How many processes.
        folder: What they print goes to ``said-RANK`` in it.
        call: See :func:`start`.
        arguments: Of the call, the same for all.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        processes.append(start(folder / f"said-{rank}", call, *arguments, environment=shared | own))
    assert [ended(process) for process in processes] == [0] * ranks


def ended(process: BaseProcess, seconds: float = 120) -> int:
    """Wait for a process and return its exit code; one that takes too long is killed, and the test fails."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"the process did not end in {seconds:g} seconds")
    return process.exitcode


def _run(folder: Path, environment: dict[str, str], call: Callable[..., Any], arguments: tuple) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        with (folder / name).open("wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    call(*arguments)
