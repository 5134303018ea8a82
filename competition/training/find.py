"""Finds a finished run by what a user types: an experiment's YAML, a run's folder, or its hash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from competition.config import Experiment, MaskfoldError, load_experiment
from competition.training.job import FoldResult
from competition.training.runs import RUNS, CvRun, load_run, run_hash

# What may change between training and submitting: it is taken from the YAML as it is now.
LATE = ("test", "submission", "root")


def find_run(word: str, overrides: Sequence[str] = (), trust: tuple[str, ...] = (),
             say: Callable[[str], None] = lambda _: None) -> CvRun:
    """The run that a word names.

    Args:
        word: an experiment's YAML, which means the latest finished run of it; a run's folder; `name/hash`; a hash, or
            its first digits.
        overrides: `key=value` words, e.g. `competition.root=/elsewhere`, `postprocess.tune=true`.
        trust: packages besides the known ones that `target` may name.
        say: takes a line for the user where the YAML has changed since.

    Returns:
        The run, with at least one finished fold.

    Raises:
        MaskfoldError: there is none, or the word could mean several.
    """
    path = Path(word)
    if path.suffix in (".yaml", ".yml") and not path.is_dir():
        return _latest(path, overrides, trust, say)
    folder = path if (path / "experiment.yaml").exists() else _by_hash(word)
    run = load_run(folder, trust, overrides)
    if not finished(run):
        raise MaskfoldError(f"The run {folder} has no finished fold.", "Finish it with the same `maskfold cv` command.")
    return run


def finished(run: CvRun) -> list[tuple[int, int]]:
    """The (fold, seed) pairs that are finished; fold -1 is the fit on all cases."""
    return [(fold, seed) for fold in (*run.numbers(), -1) for seed in range(len(run.exp.seeds))
            if FoldResult.read(run.member_folder(fold, seed)) is not None]


def _latest(file: Path, overrides: Sequence[str], trust: tuple[str, ...], say: Callable[[str], None]) -> CvRun:
    exp = load_experiment(file, overrides, trust)
    base = RUNS / f"{exp.competition.name}-{file.stem}"
    found: list[tuple[float, CvRun]] = []
    for yaml in sorted(base.glob("*/experiment.yaml")):
        run = load_run(yaml.parent, trust)
        places = [run.member_folder(*member) / "result.json" for member in run.members()]
        if places and all(place.exists() for place in places):
            found.append((max(place.stat().st_mtime for place in places), run))
    if not found:
        raise MaskfoldError(f"No finished run of {file} is below {base}.", f"Run `maskfold cv {file}` first.")
    run = max(found, key=lambda pair: pair[0])[1]
    now = current(run.exp, exp)
    if run_hash(now, "") != run_hash(exp, ""):
        say(f"note: {file} has changed since the run {run.folder.name}; what was trained is as the run's own "
            "experiment.yaml says")
    return CvRun(run.folder, now, run.cases, run.folds, run.name)


def current(trained: Experiment, now: Experiment) -> Experiment:
    """What was trained, with the test images, the submission, the post-processing and `run:` as the YAML says now."""
    comp = trained.competition.model_copy(update={key: getattr(now.competition, key) for key in LATE})
    return trained.model_copy(update={"competition": comp, "postprocess": now.postprocess, "run": now.run})


def _by_hash(word: str) -> Path:
    found = sorted(yaml.parent for yaml in RUNS.glob("*/*/experiment.yaml")
                   if str(yaml.parent.relative_to(RUNS)) == word or yaml.parent.name == word)
    found = found or sorted(yaml.parent for yaml in RUNS.glob("*/*/experiment.yaml") if len(word) >= 4
                            and yaml.parent.name.startswith(word))
    if len(found) == 1:
        return found[0]
    if not found:
        raise MaskfoldError(f"`{word}` is no run: neither a folder with an experiment.yaml, nor a run below {RUNS}.",
                            "Name an experiment's YAML, a run's folder or its hash; `maskfold cv` prints it.", status=2)
    raise MaskfoldError(f"`{word}` could mean {' or '.join(map(str, found[:3]))}.", "Type more of it.", status=2)
