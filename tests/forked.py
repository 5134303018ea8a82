"""Functions that children of `competition.fork_server` call in tests.

`tests.warm` uses `call` and the functions after it.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path


def describe(word: str) -> int:
    """Print the properties of this process as JSON, e.g. its environment and signal handlers; return 7."""
    print(
        json.dumps(
            {
                "word": word,
                "folder": os.getcwd(),
                "session": os.getsid(0) == os.getpid(),
                "input": os.readlink("/proc/self/fd/0"),
                "environment": dict(os.environ),
                "argv": sys.argv,
                "threads": threading.active_count(),
                "signals": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
                "handlers": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
                "loaded": "csv" in sys.modules,
                "parent": os.getppid(),
            }
        )
    )
    return 7


def answer(variable: str) -> None:
    """Write `well` to the file descriptor whose number an environment variable contains."""
    os.write(int(os.environ[variable]), b"well")


def end(how: str) -> int:
    """End this process.

    Args:
        how: how to end: "text" or "none" (`sys.exit` with a text or without an argument), "error", "Ctrl-C", "kill", or
            a number to return.
    """
    atexit.register(lambda: print("at exit", flush=True))
    if how == "text":
        sys.exit("a text")
    if how == "none":
        sys.exit()
    if how == "error":
        raise ValueError("a fault")
    if how == "Ctrl-C":
        raise KeyboardInterrupt
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return int(how)


def stay() -> None:
    """Wait until the parent process ends, or for about 100 s."""
    print("here", flush=True)
    parent = os.getppid()
    for _ in range(2000):
        if os.getppid() != parent:
            print("the parent ended", flush=True)
            return
        time.sleep(0.05)


def call(errors: str, function: str, *arguments: str) -> int | None:
    """Call a function with its standard error redirected to a file, and return its result; see `tests.warm`.

    Args:
        errors: the file.
        function: the function, as `module:name`.
        *arguments: its arguments.
    """
    from competition.process import PARENT_VARIABLE

    file = os.open(errors, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 2)
    os.close(file)
    # Open both streams again: those of the fork server are seekable files, but here they are a pipe and a file.
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    os.environ.pop(PARENT_VARIABLE, None)  # this process is not a fold
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the process that started the tests may ignore SIGINT
    module, _, name = function.partition(":")
    status: int | None = getattr(importlib.import_module(module), name)(*arguments)
    return status


def command(*words: str) -> None:
    """Run `maskfold WORDS`.

    Its fork server is forked before the command begins, instead of being started as a new program.
    """
    from tests.faults.stage import hire_server

    hire_server([])
    sys.argv = ["maskfold", *words]
    os.environ["COLUMNS"] = "160"
    from competition.cli.main import main

    main()


def script(path: str, *words: str) -> None:
    """Run the script `path` with the arguments `words`, like `python PATH WORDS`."""
    sys.argv = [path, *words]
    sys.path.insert(0, str(Path(path).parent))
    sys.dont_write_bytecode = True
    runpy.run_path(path, run_name="__main__")


def deliver(folder: str, experiment: str) -> None:
    """Upload a run to MLflow until this process is killed.

    Args:
        folder: folder of the run.
        experiment: the experiment as JSON.
    """
    from competition.config.experiment import Experiment
    from competition.tracking.sync import MlflowSync

    exp = Experiment.model_validate_json(experiment, strict=False)
    with MlflowSync(Path(folder), exp, interval=0.05):
        time.sleep(300)
