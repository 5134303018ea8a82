"""Draw a progress bar for each running fold, if the output is a terminal."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from competition.runs.run import Run

READ_BYTES = 4096  # number of bytes at the end of a fold's output that contain its latest line


class FoldBars:
    """Draw progress bars of a run's folds on a terminal, and nothing elsewhere.

    The progress is read from the output files of the folds' processes.

    Args:
        run: the run.
        console: the console on which the command prints its lines; the bars are drawn below these lines.

    Example:
        >>> with FoldBars(run, console) as bars:  # doctest: +SKIP
        ...     run_cv(run, context, bars.update)
    """

    def __init__(self, run: Run, console: Console) -> None:
        self.run, self.console = run, console
        self._progress: Progress | None = None
        self._tasks: dict[Path, TaskID] = {}
        self._sizes: dict[Path, int] = {}  # size of each output at the start; earlier processes wrote this part
        self._variable: str | None = None

    def __enter__(self) -> FoldBars:
        from competition.training.timing.progress import BAR_VARIABLE

        self._variable = os.environ.pop(BAR_VARIABLE, None)
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            os.environ[BAR_VARIABLE] = "1"  # the processes of the folds inherit the variable
            for folder in self._folders():
                self._sizes[folder] = _size(folder)
            self._progress = Progress(
                TextColumn("{task.fields[fold]}"), BarColumn(20), TextColumn("{task.description}"), console=self.console
            )
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from competition.training.timing.progress import BAR_VARIABLE

        self.close()
        os.environ.pop(BAR_VARIABLE, None)
        if self._variable is not None:
            os.environ[BAR_VARIABLE] = self._variable

    def update(self) -> None:
        """Read the folds' latest progress lines, and draw the bars."""
        if self._progress is None:
            return
        from competition.runs.fold import RESULT_FILE

        for folder in self._folders():
            found = None if _size(folder) <= self._sizes.get(folder, 0) else _last_progress(folder)
            finished = (folder / RESULT_FILE).exists()
            if finished and folder in self._tasks:
                self._progress.remove_task(self._tasks.pop(folder))
            elif found is not None and not finished:
                if folder not in self._tasks:
                    self._tasks[folder] = self._progress.add_task("", total=1.0, fold=folder.name)
                self._progress.update(self._tasks[folder], completed=found[0], description=found[1])

    def close(self) -> None:
        """Remove the bars."""
        if self._progress is not None:
            for task in self._tasks.values():
                self._progress.remove_task(task)
            self._tasks.clear()
            self._progress.stop()
            self._progress = None

    def _folders(self) -> list[Path]:
        return [self.run.member_folder(*member) for member in self.run.members()]


def _size(folder: Path) -> int:
    from competition.training.fold_process import OUTPUT_FILE

    path = folder / OUTPUT_FILE
    return path.stat().st_size if path.exists() else 0


def _last_progress(folder: Path) -> tuple[float, str] | None:
    """Return the last progress that a fold's output file contains; None if it contains no progress line.

    The progress is the finished share of the fold's work, in [0, 1], and a text about the current work.
    """
    from competition.training.fold_process import OUTPUT_FILE
    from competition.training.timing.progress import parse_bar

    with open(folder / OUTPUT_FILE, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - READ_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return next((found for line in reversed(lines) if (found := parse_bar(line)) is not None), None)
