"""Which patch sizes a network takes, found by pushing shapes through it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from competition.model.arguments import one_line
from competition.model.outputs import describe, output_levels

Size = tuple[int, ...]


class Trial:
    """Pushes patches through a network.

    Args:
        network: on the meta device.
        channels: channels of its input.
        outputs: channels of its output.
        on_cpu: builds it on the CPU, for a network that looks at values while it runs.
    """

    def __init__(self, network: nn.Module, channels: int, outputs: int, on_cpu: Callable[[], nn.Module]) -> None:
        self.network, self.channels, self.outputs, self.on_cpu = network, channels, outputs, on_cpu
        self.device = "meta"

    def trouble(self, size: Size, batch: int) -> str | None:
        """What goes wrong with `batch` patches in training mode or one in evaluation; None where nothing does.

        Raises:
            ImportError: the network needs a package that is not installed.
        """
        try:
            return self._trouble(size, batch)
        except (RuntimeError, NotImplementedError) as error:
            if self.device != "meta" or "meta" not in str(error).lower():
                return one_line(error)
        except ImportError:
            raise
        except Exception as error:  # noqa: BLE001 - a network may raise anything
            return one_line(error)
        self.network, self.device = self.on_cpu(), "cpu"
        return self.trouble(size, batch)

    @torch.no_grad()
    def _trouble(self, size: Size, batch: int) -> str | None:
        for mode, count in (("training", batch), ("evaluation", 1)):
            self.network.train(mode == "training")
            outputs = self.network(torch.zeros(count, self.channels, *size, device=self.device))
            logits = output_levels(outputs, len(size), self.outputs)[0][0]  # a ValueError says what it gives instead
            if tuple(logits.shape) != (count, self.outputs, *size):
                return f"in {mode} it gives {describe(logits)} for {(count, self.channels, *size)}"
        return None


def fitting_sizes(fits: Callable[[Size], bool], size: Size) -> list[Size]:
    """The nearest sizes that fit: one not above `size` on any axis where there is one, and one not below.

    Networks that halve n times want multiples of 2^n, on each axis its own n; so multiples of 2, 4, … 128 are tried.

    Args:
        fits: whether a patch of a size goes through.
        size: one that does not.
    """
    known: dict[Size, bool] = {size: False}

    def check(candidate: Size) -> bool:
        if candidate not in known:
            known[candidate] = fits(candidate)
        return known[candidate]

    multiples = [2**power for power in range(8)]
    upper = next((up for step in multiples if check(up := tuple(-(-edge // step) * step for edge in size))), None)
    if upper is None:
        return []
    steps = []
    for axis, edge in enumerate(size):
        trials = ((step, (*upper[:axis], -(-edge // step) * step, *upper[axis + 1 :])) for step in multiples)
        step, upper = next((step, trial) for step, trial in trials if check(trial))
        steps.append(step)
    lower = tuple(edge // step * step for edge, step in zip(size, steps, strict=True))
    return [lower, upper] if min(lower) > 0 and check(lower) else [upper]
