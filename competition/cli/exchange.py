"""Run the commands that exchange predictions and folds with other programs: import, folds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from competition.cli.console import exit_on_signal, format_interval, plain_printer, progress_bar
from competition.config.loading import load_competition, load_experiment
from competition.context import Context
from competition.errors import MaskfoldError
from competition.text import format_count, format_number, join_or

if TYPE_CHECKING:
    from collections.abc import Callable

    from competition.importing.importer import ImportedRun
    from competition.runs.run import Run

AXES = ("xyz", "yxz", "zyx", "xy", "yx")
KINDS = ("auto", "labels", "probabilities")


@exit_on_signal("stopped: nothing was imported")
def import_command(
    folder: Path,
    competition: Path,
    name: str,
    overrides: list[str],
    *,
    oof: Path | None,
    test: Path | None,
    splits: Path | None,
    kind: str,
    axes: str | None,
    channels: str | None,
    trust: tuple[str, ...],
) -> None:
    """Run `maskfold import`; `competition.cli.commands_submit.import_` describes the arguments."""
    for option, value, known in (("--kind", kind, KINDS), ("--axes", axes, AXES)):
        if value is not None and value not in known:
            raise MaskfoldError(
                f"{option}: found {value}, expected one of {', '.join(known)}.", f"Correct {option}.", status=2
            )
    console = Console(highlight=False)
    say = plain_printer(console)
    # Accept `competition.root=…` too, because hints name the keys as in an experiment's YAML.
    comp = load_competition(competition, [override.removeprefix("competition.") for override in overrides], trust)
    if axes is not None and len(axes) != comp.dimensions:
        raise MaskfoldError(
            f"--axes: found {axes}, expected {join_or(name for name in AXES if len(name) == comp.dimensions)}, because "
            f"competition.dimensions is {comp.dimensions}.",
            "Correct --axes.",
            status=2,
        )

    from competition.importing.importer import import_notes, import_predictions
    from competition.importing.reading import ReadingOptions
    from competition.runs.summary import read_summary

    names = tuple(part.strip() for part in channels.split(",")) if channels else ()
    options = ReadingOptions(kind, axes, names)  # type: ignore[arg-type]  # checked above
    done = import_predictions(
        comp,
        folder,
        name,
        oof=oof,
        test=test,
        splits=splits,
        options=options,
        context=Context(trust, say),
        progress=progress_bar(console, "predictions read"),
    )
    say(f"{'imported' if done.is_new else 'already imported'}: {done.run.folder} ({done.layout})")
    if done.predicted:
        folds = len(done.run.fold_numbers())
        say(
            f"out-of-fold predictions: {format_count(done.predicted, 'training case')} in "
            f"{format_count(folds, 'fold')}; test predictions: {format_count(done.tests[0], 'case')}"
        )
        summary = read_summary(done.run.folder)
        dice = ", ".join(f"{cls} {format_number(value)}" for cls, value in done.dice.items())
        ends = format_interval(summary["low"], summary["high"])
        interval = f" (95 % interval {ends})" if ends else ""
        say(f"{comp.metric.label}: {format_number(done.score)} out of fold{interval}; Dice {dice}")
    else:
        say(
            f"test predictions: {format_count(done.tests[0], 'case')}; there are no out-of-fold predictions, so the "
            "score is unknown"
        )
    for note in import_notes(done):
        say(f"note: {note}")
    command = _next_command(done)
    say(f"Next: {command}" + ("   (replace RUN by a run of your own)" if " RUN " in command else ""))


def _next_command(done: ImportedRun) -> str:
    """Return the suggested next command for an imported run.

    The command is `submit` if the run has predictions of all test cases. Otherwise, it is `compare` for a run with
    out-of-fold predictions, and `report` for a run without them.
    """
    name = done.run.folder.name
    if done.tests[0] < done.tests[1] or not done.tests[1]:
        return f"maskfold compare RUN {name}" if done.predicted else f"maskfold report {name}"
    return f"maskfold submit RUN {name} --weights " + ("auto" if done.predicted else "0.5,0.5")


@exit_on_signal("stopped: nothing was written")
def folds_command(name: str, overrides: list[str], form: str, output: Path | None, trust: tuple[str, ...]) -> None:
    """Run `maskfold folds`; `competition.cli.commands_submit.folds` describes the arguments."""
    from competition.importing.splits import DEFAULT_NAMES, check_form, write_splits
    from competition.runs.outputs import check_output, competitions_of

    say = plain_printer(Console(highlight=False))
    kind = check_form(form)
    path = output or Path(DEFAULT_NAMES[kind])
    run = _run_with_folds(name, overrides, trust, say)
    check_output([path], competitions_of([run]))
    fold_of = {case: int(fold) for case, fold in run.fold_of().items()}
    write_splits(fold_of, kind, path)
    held_out = sum(fold == -2 for fold in fold_of.values())
    say(
        f"{path}: {format_count(len(fold_of), 'case')} in {format_count(len(run.fold_numbers()), 'fold')}"
        + (f"; {format_count(held_out, 'case')} held out as test share" if held_out else "")
    )
    if kind == "nnunet":
        say("Next: copy the file to nnUNet_preprocessed/DATASET before the first nnUNetv2_train")
    else:
        say(f"Next: to use these folds, write folds: {{scheme: file, file: {path}}} into another experiment's YAML")


def _run_with_folds(name: str, overrides: list[str], trust: tuple[str, ...], say: Callable[[str], None]) -> Run:
    """Return a run that has folds, from the name of a run or from an experiment's YAML.

    If the experiment of the YAML has no run yet, the folds are those that training would use if all images differ.
    """
    from competition.data.splits import read_folds
    from competition.runs.find import find_run
    from competition.runs.run import FOLDS_FILE

    path = Path(name)
    if path.suffix not in (".yaml", ".yml") or path.is_dir():
        return find_run(name, overrides, trust, say)

    from dataclasses import replace

    from competition.training.cross_validate import open_run

    exp = load_experiment(path, overrides, trust)
    run = open_run(exp, f"{exp.competition.name}-{path.stem}")
    if (run.folder / FOLDS_FILE).exists():
        return replace(run, folds=read_folds(run.folder / FOLDS_FILE))
    say(
        "note: this experiment has no run yet. When `maskfold cv` starts the first run, it compares the pixels of "
        "all images, and puts cases with equal images into the same fold. If some images are equal, the folds of that "
        "run differ from the folds written now. In this case, repeat this command after the run has started"
    )
    return run
