"""How much of the prepared cases lies in memory at a time: `prepare.cache_gib`.

Prepared cases are mapped files. What a process has read of them stays in its resident memory for as long as the kernel
sees no need for it elsewhere, so a process that has seen all cases holds all of them. Pages that are given back here can be
had again at once while the file system still has them: a page that is touched again costs a fault, no copy.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from competition.config.experiment import Experiment
from competition.data.cache import PreparedCase

PAGE = mmap.PAGESIZE


class Resident:
    """Keeps the cases that one process has mapped within a number of bytes: those used longest ago give their pages back.

    A case counts with all that it has on disk, however little of it was read, so the bound holds without a look at the
    kernel's books. A case that is larger than the bound by itself is alone while it is read and gives all back after that.

    Args:
        most: bytes; None: no bound.

    Example:
        >>> resident = Resident(2**30)
        >>> with resident.reading(case):  # doctest: +SKIP
        ...     patch = np.array(case.image[:, :32, :32, :32])
    """

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._held: OrderedDict[int, tuple[PreparedCase, int]] = OrderedDict()  # with bytes; the one used longest ago first

    @classmethod
    def of(cls, exp: Experiment) -> Resident:
        """One process's share of `prepare.cache_gib`: each device has one that trains and judges, and its loaders."""
        if exp.prepare.cache_gib is None:
            return cls(None)
        return cls(int(exp.prepare.cache_gib * 2**30) // (exp.run.devices * (exp.run.workers + 1)))

    @property
    def bytes(self) -> int:
        """What the cases may hold at most now."""
        return sum(size for _, size in self._held.values())

    @contextmanager
    def reading(self, case: PreparedCase) -> Iterator[None]:
        """Make room for a case that is read inside of the block."""
        if self.most is None:
            yield
            return
        size = footprint(case)
        self._held.pop(id(case), None)
        while self._held and self.bytes + size > self.most:
            self.drop(next(iter(self._held.values()))[0])
        self._held[id(case)] = (case, size)
        try:
            yield
        finally:
            if size > self.most:
                self.drop(case)

    def drop(self, case: PreparedCase) -> None:
        """Give back a case's pages; it can be read again, which counts anew."""
        if self._held.pop(id(case), None) is not None:
            give_back(case)


def footprint(case: PreparedCase) -> int:
    """Bytes of whole pages that a case's files take when all of them is read."""
    return sum(-(-size // PAGE) * PAGE for size in case.sizes)


def give_back(case: PreparedCase) -> None:
    """Take the pages of a case's open maps out of this process's memory, where the system knows how (Linux)."""
    for array in vars(case).values():
        if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            array.base.madvise(mmap.MADV_DONTNEED)
