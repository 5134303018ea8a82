"""Functions that the child processes of `test_shards.py` run.

They are in their own module, so that these processes need not import torch, which `test_shards.py` imports.
"""

from __future__ import annotations

import os
import signal
import time


def do_nothing(_worker, shard, device):
    """Predict no case."""


def tell_environment(folder, _worker, shard, device):
    """Write the visible GPUs, the number of threads and the device of this process to a file."""
    seen = [os.environ.get("CUDA_VISIBLE_DEVICES", ""), os.environ.get("OMP_NUM_THREADS", ""), device]
    (folder / f"seen{shard}").write_text(" ".join(seen))


def fail_as_second_shard(_worker, shard, device):
    """Raise an error in all shards but the first one, which sleeps."""
    if shard:
        from competition.rle_text import RleError

        raise RleError("case.png is damaged.", "Replace the file.", status=2)
    time.sleep(600)


def die_as_second_shard(_worker, shard, device):
    """Die of a SIGKILL in all shards but the first one, which sleeps."""
    if shard:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def hang(_worker, shard, device):
    """Ignore SIGTERM, and sleep."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
