"""Functions that a child of `competition.fork_server` calls in tests; the last ones are for `tests.warm`."""

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
    """Print what the process is made of."""
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
    """Write to the descriptor whose number is in a variable."""
    os.write(int(os.environ[variable]), b"well")


def end(how: str) -> int:
    """End in some way."""
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
    """End when the parent does, as a fold does, or after a long time."""
    print("here", flush=True)
    parent = os.getppid()
    for _ in range(2000):
        if os.getppid() != parent:
            print("the parent ended", flush=True)
            return
        time.sleep(0.05)


def call(errors: str, function: str, *arguments: str) -> int | None:
    """Call `module:name` with its standard error in a file; see `tests.warm`."""
    from competition.process import PARENT_VARIABLE

    file = os.open(errors, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 2)
    os.close(file)
    # The server opened its own as seekable files, and these are a pipe and a file.
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    os.environ.pop(PARENT_VARIABLE, None)  # it is no fold
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever starts the tests may have them ignore it
    module, _, name = function.partition(":")
    status: int | None = getattr(importlib.import_module(module), name)(*arguments)
    return status


def command(*words: str) -> None:
    """Be `maskfold WORDS`; the server of its folds is forked before the command begins, instead of started afresh."""
    from tests.faults.stage import hire_server

    hire_server([])
    sys.argv = ["maskfold", *words]
    os.environ["COLUMNS"] = "160"
    from competition.cli.main import main

    main()


def script(path: str, *words: str) -> None:
    """Be `python PATH WORDS`."""
    sys.argv = [path, *words]
    sys.path.insert(0, str(Path(path).parent))
    sys.dont_write_bytecode = True
    runpy.run_path(path, run_name="__main__")


def deliver(folder: str, experiment: str) -> None:
    """Deliver a run to MLflow until the process is killed."""
    from competition.config.experiment import Experiment
    from competition.tracking.sync import MlflowSync

    exp = Experiment.model_validate_json(experiment, strict=False)
    with MlflowSync(Path(folder), exp, interval=0.05):
        time.sleep(300)
