"""Run `maskfold init` and `maskfold plan`, and write the YAML files for `maskfold cv FOLDER`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from competition.cli.console import exit_on_signal, format_columns, plain_printer, progress_bar
from competition.errors import MaskfoldError
from competition.text import format_amount, format_count

if TYPE_CHECKING:
    from competition.config.experiment import Experiment
    from competition.planning.init import Initialised
    from competition.planning.plan import Plan

MAX_FAULTS = 20  # maximum number of faults that are printed; `maskfold explore` lists all


@exit_on_signal("stopped: no YAML file was written")
def init_command(
    folder: Path,
    name: str | None,
    layout: int | None,
    minutes: float | None,
    folds: int | None,
    force: bool,
    measures: bool,
) -> None:
    """Run `maskfold init`; see `competition.cli.commands_train.init`. Exit with status 1 if the data have faults."""
    from competition.planning.init import Options

    done = _initialise(folder, Options(name, layout, minutes, folds, force, measures))
    say = plain_printer(Console(highlight=False))
    if done.plan is not None and done.plan.minutes is not None:
        n_folds = next(line.value["k"] for line in done.plan.lines if line.path == ("folds",))
        say(_training_time(done.plan.minutes, n_folds))
    say(f"Next: maskfold cv {shlex.quote(str(done.experiment))}")


def _initialise(folder: Path, options: Any) -> Initialised:
    """Write the YAML files for a folder of data, print what was found and planned, and return these results.

    If the data have faults, exit with status 1.

    Args:
        folder: folder of the competition's data.
        options: `competition.planning.init.Options`, made from the options of the command line.
    """
    from competition.fork_server import close_shared_server
    from competition.planning.init import counts_of, initialise, remarks_of

    console = Console(highlight=False)
    say = plain_printer(console)
    check_minutes(options.minutes)
    if options.folds is not None and options.folds < 2:
        raise MaskfoldError(f"--folds: found {options.folds}, expected at least 2.", "Correct --folds.", status=2)
    ask = _ask if sys.stdin.isatty() and sys.stdout.isatty() else None
    done = initialise(folder, options, ask, progress_bar(console, "cases read"), say)
    close_shared_server()
    comp, faults = done.exploration.comp, done.exploration.faults
    say(f"{folder}: {done.layout.name}: {done.layout.summary}")
    say(f"{counts_of(done)}; classes: {', '.join(comp.classes)}")
    for remark in remarks_of(done):
        say(remark)
    for fault in faults[:MAX_FAULTS]:
        say(f"fault ({fault.kind}): {fault.message} {fault.hint}")
    if len(faults) > MAX_FAULTS:
        say(
            f"{format_count(len(faults) - MAX_FAULTS, 'more fault')}; to list all: maskfold explore "
            f"{shlex.quote(str(done.competition))}"
        )
    if done.plan is not None:
        print_plan(done.plan, options.minutes is None, console)
    say(f"written: {done.competition}" + (f", {done.experiment}" if done.experiment else ""))
    if faults or done.experiment is None:
        say(f"Correct the data or the YAML, then check again: maskfold explore {shlex.quote(str(done.competition))}")
        sys.exit(1)
    return done


def _training_time(minutes: float, n_folds: int) -> str:
    """Return the sentence that says how long `maskfold cv` will train.

    Args:
        minutes: time budget of a fold.
        n_folds: number of folds, which train one after another.
    """
    total = minutes * n_folds
    time = format_amount(total, "minute") if total < 120 else format_amount(total / 60, "hour", ".3g")
    return f"Training will take about {time}: {n_folds} folds of {format_amount(minutes, 'minute')}, one after another."


def check_minutes(minutes: float | None) -> None:
    """Check the option --minutes.

    Raises:
        MaskfoldError (exit status 2): the minutes are not a positive number.
    """
    if minutes is not None and not 0 < minutes < float("inf"):
        raise MaskfoldError(f"--minutes: found {minutes}, expected a number above 0.", "Correct --minutes.", status=2)


def print_plan(plan: Plan, is_default: bool, console: Console) -> None:
    """Print the table of the settings that the plan compared, and the plan's warnings.

    Args:
        plan: the plan.
        is_default: whether the time budget is the default, because the user gave no --minutes.
        console: the console to print on.
    """
    from competition.planning.plan import HEADER, table_rows

    say = plain_printer(console)
    if plan.rows and plan.minutes is not None:
        budget = f"{format_amount(plan.minutes, 'minute')} per fold" + (
            " (the default of --minutes)" if is_default else ""
        )
        cores = format_count(plan.threads, "thread")
        say(
            f"Candidate settings for {budget}; timing with {cores} took {plan.seconds:.0f} s (s/step: seconds per step "
            "on an idle machine):"
        )
        for line in format_columns(HEADER, table_rows(plan)):
            say(f"  {line}")
    for warning in plan.warnings:
        say(f"warning: {warning}")


@exit_on_signal("stopped: the YAML has not changed")
def plan_command(file: Path, overrides: list[str], minutes: float | None, write: bool, trust: tuple[str, ...]) -> None:
    """Run `maskfold plan`; see `competition.cli.commands_train.plan`."""
    from competition.explore import Exploration, explore
    from competition.fork_server import close_shared_server
    from competition.planning.replan import replan
    from competition.planning.replan import write as write_plan

    console = Console(highlight=False)
    say = plain_printer(console)
    check_minutes(minutes)

    def read(exp: Experiment) -> Exploration:
        return explore(exp.competition, progress_bar(console, "cases read"))

    done = replan(file, overrides, minutes, trust, read, say)
    close_shared_server()
    print_plan(done.plan, done.plan.minutes != minutes and minutes is None, console)
    for key, value in done.kept.items():
        say(f"kept: {key} has your own value; the plan would set {value}")
    difference = done.difference()
    for line in difference:
        say(line)
    command = shlex.quote(str(file))
    if not difference:
        say(f"{file} already has the values of this plan. Next: maskfold cv {command}")
    elif write:
        backup = write_plan(done)
        say(f"{file} now has this plan; the former file is {backup}. Next: maskfold cv {command}")
    else:
        minutes_option = "" if minutes is None else f" --minutes {minutes:g}"
        say(f"{file} has not changed. To write this plan: maskfold plan {command}{minutes_option} --write")


def experiment_for(
    folder: Path, overrides: list[str], layout: int | None, minutes: float | None, name: str | None = None
) -> Path:
    """Return the experiment's YAML for `maskfold cv FOLDER`; write it first if it does not exist.

    Args:
        folder: folder of the competition's data.
        overrides: the `key=value` words of the command line; only `run.threads` is used here.
        layout: number of the layout, if the folder can be read in several ways.
        minutes: time budget of a fold in minutes; None means the default, or the budget of an existing experiment.
        name: name of the competition; None means the folder's name.

    Raises:
        MaskfoldError: the existing experiment has another data folder or another budget (exit status 2).
    """
    from competition.config.loading import load_experiment
    from competition.config.yaml import parse_yaml
    from competition.planning.init import Options, experiment_of

    path = experiment_of(folder, name)
    quoted = shlex.quote(str(path))
    if not path.exists():
        words = dict(word.partition("=")[::2] for word in overrides)
        threads = parse_yaml(words["run.threads"]).tree if "run.threads" in words else None
        options = Options(name, layout, minutes, measures=True, threads=threads if isinstance(threads, int) else None)
        done = _initialise(folder, options)
        assert done.experiment is not None
        return done.experiment
    exp = load_experiment(path, [])
    root = exp.competition.root.resolve()
    if root != folder.resolve() and folder.resolve() not in root.parents:
        raise MaskfoldError(
            f"{path} describes the data in {root}, not in {folder}.",
            f"Choose another name for this competition: maskfold cv {shlex.quote(str(folder))} --name NAME.",
            status=2,
        )
    if minutes is not None and minutes != exp.training.budget_minutes:
        own = exp.training.budget_minutes
        budget = "without a time budget" if own is None else f"with a time budget of {format_amount(own, 'minute')}"
        raise MaskfoldError(
            f"{path} exists already {budget} (training.budget_minutes), but --minutes is {minutes:g}.",
            f"Plan the experiment again with the new budget: maskfold plan {quoted} --minutes {minutes:g} --write. "
            "Then repeat this command.",
            status=2,
        )
    return path


def _ask(lines: Sequence[str]) -> int:
    """Print the numbered ways to read a folder, and return the number that the user enters."""
    typer.echo(f"Maskfold can read this folder in {len(lines)} ways:")
    for line in lines:
        typer.echo(line)
    while True:
        number: int = typer.prompt("Number of the correct way", type=int)
        if 1 <= number <= len(lines):
            return number
        typer.echo(f"Enter a whole number from 1 to {len(lines)}.")
