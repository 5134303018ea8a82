"""`maskfold submit`: words to runs and weights, and the lines at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from competition.cli.progress import watcher
from competition.cli.words import stoppable, words_and_overrides
from competition.config import MaskfoldError

if TYPE_CHECKING:
    from competition.submission.submit import Submitted
    from competition.training.runs import CvRun


@stoppable("stopped: nothing was written")
def make_submission(
    words: list[str], weights: str | None, output: Path | None, out_of_fold: bool, trust: tuple[str, ...]
) -> None:
    """Run the command; see `competition.cli.main.submit`."""
    console = Console(highlight=False)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    names, overrides = words_and_overrides(words)
    wanted = weights_of(weights)

    from competition.training.find import find_run

    runs = [find_run(name, overrides, trust, say) for name in names]
    if out_of_fold:
        _out_of_fold(runs, output, say)
        return

    from competition.submission.submit import submit
    from competition.tracking.submission import log_submission

    done = submit(runs, wanted, output, trust, say, progress=watcher(console))
    say(f"{done.path}: {done.verdict.rows} rows, {done.verdict.empty} of them empty; valid")
    for line in _expectation(done):
        say(line)
    if log_submission(runs[0].folder, runs[0].exp, done.path, done.note) is not None:
        say(f"Logged to MLflow beside the run {runs[0].folder.name}, with {done.note.name}")
    say("Next: hand the file in, or make ui")


def _expectation(done: Submitted) -> list[str]:
    expected = done.expected
    if expected is None:
        return ["Expected score: unknown, since nothing was predicted out of fold"]
    nested = "nested out of fold" if expected.tuned is not None and expected.tuned.kept else "out of fold"
    return [
        f"Expected {expected.metric}: {expected.score:.4f} ({nested}, {expected.cases} cases); 95 % of test sets of "
        f"{expected.test_cases} cases score between {expected.low:.4f} and {expected.high:.4f}"
    ]


def _out_of_fold(runs: list[CvRun], output: Path | None, say: Any) -> None:
    from competition.submission.submit import FOLDER, write_out_of_fold

    if len(runs) != 1:
        raise MaskfoldError("--out-of-fold writes the predictions of one run.", "Name one run.", status=2)
    run = runs[0]
    path = output or FOLDER / run.exp.competition.name / f"out-of-fold-{run.folder.name}.csv"
    verdict, score = write_out_of_fold(run, path)
    say(f"{path}: {verdict.rows} rows of training cases; {run.exp.competition.metric.name} {score:.10f}")
    say(f"Next: maskfold score {path} --competition …/competition.yaml   (the same number, from the file)")


def weights_of(text: str | None) -> list[float] | str | None:
    """What --weights says: `auto`, numbers, or None."""
    if text is None or text == "auto":
        return text
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise MaskfoldError(
            f"--weights `{text}` is neither `auto` nor a list of numbers.", "Write e.g. --weights 0.6,0.4.", status=2
        ) from None
