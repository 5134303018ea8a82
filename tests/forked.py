"""Functions that a child of `competition.fork_server` calls in tests."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import time


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
