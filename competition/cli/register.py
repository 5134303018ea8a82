"""`maskfold register`: a run's networks as a version of the competition's model in MLflow's registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from competition.cli.words import stoppable, words_and_overrides
from competition.config import MaskfoldError

if TYPE_CHECKING:
    from competition.training.runs import CvRun


@stoppable("stopped: nothing was registered")
def register_run(words: list[str], best: bool, trust: tuple[str, ...]) -> None:
    """Run the command; see `competition.cli.main.register`."""
    console = Console(highlight=False)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    names, overrides = words_and_overrides(words)
    if len(names) > 1:
        raise MaskfoldError(f"A model is made of one run, and {len(names)} are named.", "Name one.", status=2)

    from competition.submission.model import described, fingerprint, version_tags, write_model
    from competition.tracking.registry import register
    from competition.training.find import best_run, find_run

    run: CvRun = (best_run if best else find_run)(names[0], overrides, trust, say)
    say(f"run {run.folder}: {described(run)}")
    version = register(
        run.folder,
        run.exp,
        lambda folder, place: write_model(run, folder, place),
        fingerprint(run),
        version_tags(run),
        described(run),
        best,
    )
    say(
        f"{'registered' if version.is_new else 'already registered'}: {version.name}, version {version.number}"
        + (f", also models:/{version.name}@best" if best else "")
    )
    say(
        f'Next: MLFLOW_TRACKING_URI={version.store} python -c "import mlflow; '
        f"print(mlflow.pyfunc.load_model('{version.uri}').predict(['{_example(run)}'])[0].shape)\""
    )


def _example(run: CvRun) -> str:
    """A file that the model can predict."""
    files = next(iter(json.loads(run.cases["images"].iloc[0]).values()))
    return str(Path(run.exp.competition.root) / (files if isinstance(files, str) else files[0]))
