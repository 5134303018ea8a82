"""What the processes of `test_shards.py` do, in a module of its own: they import it, and the tests need torch."""

from __future__ import annotations

import os
import signal
import time


def do_nothing(_worker, shard, device):
    """Predict no case."""


def tell_environment(folder, _worker, shard, device):
    seen = [os.environ.get("CUDA_VISIBLE_DEVICES", ""), os.environ.get("OMP_NUM_THREADS", ""), device]
    (folder / f"seen{shard}").write_text(" ".join(seen))


def fail_as_second_shard(_worker, shard, device):
    if shard:
        from competition.rle import RleError

        raise RleError("case.png is damaged.", "Replace the file.", status=2)
    time.sleep(600)


def die_as_second_shard(_worker, shard, device):
    if shard:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def hang(_worker, shard, device):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
