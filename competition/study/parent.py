"""The study's own run in MLflow, above its trials'."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from competition.study.search import Search


@contextmanager
def parent_run(search: Search) -> Iterator[None]:
    """Delivers the study's folder to MLflow; of several processes on one folder only the first does."""
    from competition.tracking.shipper import Shipper

    with open(search.folder / "shipper.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield
            return
        with Shipper(search.folder, search.source.load(), kind="study", name=f"study {search.name}"):
            yield
