"""The processes of one fold, one for each device: all take the same steps on samples of their own, the first decides."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from competition.config import MaskfoldError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Key = TypeVar("Key", bound=Hashable)
PARENT = "MASKFOLD_PARENT"  # of a fold's process: the process that started it


def is_first() -> bool:
    """Whether this process is the fold's first: the one that starts the others, validates, writes and answers."""
    return os.environ.get("LOCAL_RANK", "0") == "0"  # Fabric numbers the processes that it starts


def parent() -> int:
    """The process that started this one, also where it has ended since."""
    return int(os.environ.get(PARENT) or os.getppid())


def launch(fabric: Fabric) -> None:
    """Start the fold's other processes, if it has any; they run the command line of this one."""
    mine = os.environ.get(PARENT)
    os.environ[PARENT] = str(os.getpid())
    try:
        fabric.launch()
    finally:
        del os.environ[PARENT]
        if mine is not None:
            os.environ[PARENT] = mine


def die_with(number: int) -> None:
    """End this process soon after its parent `number` has: it may wait for ever in an exchange that the parent left."""

    def watch() -> None:
        while os.getppid() == number:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()


class Ranks:
    """What the processes of a fold tell each other. A process that is alone asks nobody.

    Args:
        fabric: launched.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric, self.count, self.rank = fabric, fabric.world_size, fabric.global_rank

    def check(self, devices: int, checkpoint: Path) -> None:
        """Refuse a checkpoint that another number of processes has made.

        Raises:
            MaskfoldError: their steps took other samples than these would.
        """
        if devices != self.count:
            raise MaskfoldError(
                f"The checkpoint {checkpoint} was made with run.devices={devices}, where a step takes other "
                f"samples than with {self.count}.",
                f"Set run.devices={devices}, or start another run with --new.",
            )

    def decide(self, act: Callable[[], None], give: Callable[[], Any], take: Callable[[Any], None]) -> None:
        """Let the first process act, and bring the others to where that leaves it.

        Args:
            act: called in the first process only; what it raises ends all of them.
            give: called after it, gives what the others need to know: plain values.
            take: called with that in the others.

        Raises:
            KeyboardInterrupt: in the others, when the first has raised anything.
        """
        if self.count == 1:
            return act()
        error: BaseException | None = None
        if self.rank == 0:
            try:
                act()
            except BaseException as caught:  # noqa: BLE001 - raised again once the others know
                error = caught
        over, state = self.fabric.broadcast((error is not None, give()) if self.rank == 0 else (False, None))
        if error is not None:
            raise error
        if over:
            raise KeyboardInterrupt("the fold's first process stopped")
        if self.rank > 0:
            take(state)

    def mean(self, values: Mapping[Key, Tensor]) -> dict[Key, float]:
        """Scalars, each averaged over the processes. Waits for the device once, however many there are."""
        means: Any = torch.stack([value.detach().float() for value in values.values()])
        if self.count > 1:
            means = self.fabric.all_reduce(means, reduce_op="mean")
        return dict(zip(values, means.tolist(), strict=True))

    def all_of(self, numbers: Tensor) -> list[int]:
        """Whole numbers (n,) of every process, one process after the other."""
        gathered: Any = self.fabric.all_gather(numbers.to(self.fabric.device)) if self.count > 1 else numbers
        return [int(number) for number in gathered.flatten().tolist()]

    def part(self) -> None:
        """The last exchange: from here on the first process is alone."""
        if self.count > 1:
            torch.distributed.destroy_process_group()
