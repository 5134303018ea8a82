"""Describe a fold in training for the user: its number of steps, its present work, and its estimated end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from competition.text import format_count
from competition.training.guards import peak_gib
from competition.training.timing.progress import clock_time, format_seconds

if TYPE_CHECKING:
    from competition.training.trainer import Trainer


class FoldStatus:
    """Make the lines for the user about the progress of a fold.

    Args:
        trainer: trainer of the fold.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def plan_lines(self, reserve: float) -> list[str]:
        """Return the lines for the start of the training, with the number of steps.

        With a time budget, the lines also contain the measured times and the estimated end of the fold.

        Args:
            reserve: estimated seconds from the last step to the end of the fold.
        """
        trainer, budget = self.trainer, self.trainer.budget
        if budget.seconds is None:
            return [f"{format_count(budget.total, 'step')} in all, {trainer.steps_per_epoch} an epoch"]
        cases = ""
        if trainer.evaluator is not None:
            seconds = format_seconds(budget.pace.validation)
            cases = f"{format_count(len(trainer.evaluator.cases), 'case')} validated in about {seconds} · "
        lines = [
            f"about {format_count(budget.total, 'step')} in all, {trainer.steps_per_epoch} an epoch, "
            f"{format_seconds(budget.pace.step)} a step · {cases}ends about {clock_time(self.seconds_left())} · "
            f"peak memory {peak_gib(trainer.fabric.device):.1f} GiB"
        ]
        if reserve > budget.seconds / 2:
            lines.append(
                f"note: the prediction after the last step takes about {format_seconds(reserve)} of the "
                f"{format_seconds(budget.seconds)} of training.budget_minutes. To have more time for training, "
                "set a lower inference.overlap, inference.tta=[] or a larger budget"
            )
        return lines

    def pace_line(self) -> str:
        """Return a line with the seconds per step and the estimated end, for a fold without a time budget."""
        trainer, pace = self.trainer, self.trainer.budget.pace
        validations = "" if trainer.evaluator is None else ", validations not included"
        return (
            f"{format_seconds(pace.step)} a step · ends about {clock_time(self.seconds_left())}{validations}"
            f" · peak memory {peak_gib(trainer.fabric.device):.1f} GiB"
        )

    def of_training(self) -> tuple[str, float]:
        """Return a text with step, epoch and loss of the training, and the finished share of the fold (0 to 1)."""
        trainer, state = self.trainer, self.trainer.state
        total, pace = trainer.budget.total, trainer.budget.pace
        about = "" if trainer.budget.seconds is None else "about "
        parts = [f"step {state.step} of {about}{total}", f"epoch {state.step // trainer.steps_per_epoch + 1}"]
        steps = state.step - state.ended - state.lost
        loss = state.sums.get("loss")  # read once, because another thread replaces the sums
        if steps > 0 and loss is not None:
            parts.append(f"loss {loss / (trainer.exp.training.accumulate * steps):.4f}")
        if pace.step:
            parts += [f"{format_seconds(pace.step)} a step", f"ends about {clock_time(self.seconds_left())}"]
        return " · ".join(parts), self._share_done()

    def of_cases(self, activity: str, done: int, total: int) -> tuple[str, float]:
        """Return a text about the cases that were validated or predicted so far, and the finished share of the fold.

        Args:
            activity: what is done with the cases, e.g. `validating`.
            done: number of cases that are finished.
            total: number of all cases.
        """
        state, budget = self.trainer.state, self.trainer.budget
        return f"{activity}: {done} of {total} cases · after step {state.step} of {budget.total}", self._share_done()

    def seconds_left(self) -> float:
        """Estimate the seconds until the end of the fold.

        Without a time budget, the time for validations is included only after the first validation has been timed.
        """
        trainer, budget, pace = self.trainer, self.trainer.budget, self.trainer.budget.pace
        steps = max(0, budget.total - trainer.state.step)
        seconds = steps * pace.step + trainer.reserved_seconds()
        if budget.seconds is not None:
            return max(seconds, budget.seconds - trainer.elapsed_seconds())
        epochs = steps // trainer.steps_per_epoch
        validations = epochs // trainer.exp.training.validate_every
        return seconds + epochs * pace.epoch_end + validations * pace.validation

    def _share_done(self) -> float:
        trainer, budget = self.trainer, self.trainer.budget
        if budget.seconds is not None:
            return min(1.0, trainer.elapsed_seconds() / budget.seconds)
        return min(1.0, trainer.state.step / budget.total)
