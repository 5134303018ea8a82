"""Run the commands that train runs, or report, compare, review and register them."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from competition.cli.console import (
    cv_table,
    exit_on_signal,
    exit_with_error,
    format_columns,
    plain_printer,
    progress_bar,
    raise_interrupt,
    skipped_cases_line,
    split_runs_and_overrides,
    terminal_bar,
)
from competition.cli.progress import FoldBars
from competition.config.loading import load_experiment
from competition.context import Context
from competition.errors import MaskfoldError
from competition.text import and_more, format_count, has_or_have, join_names

if TYPE_CHECKING:
    from competition.config.competition import Competition
    from competition.runs.run import Run
    from competition.study.study import StudySession
    from competition.training.cross_validate import CvSummary


# Seconds to wait for a run's lock. A command that only prints the table of a finished run holds the lock for less time.
LOCK_PATIENCE = 3.0
LOG_WIDTH = 160  # columns of tables if the output is not a terminal
SHOWN_FINDINGS = 10  # maximum number of findings that `maskfold review` prints


def cv_command(file: Path, overrides: list[str], new: bool, trust: tuple[str, ...]) -> None:
    """Run `maskfold cv`; `competition.cli.commands_train.cv` describes the arguments."""
    try:
        _run_cv(file, overrides, new, trust)
    except KeyboardInterrupt as interrupt:
        reason = str(interrupt) or "Ctrl-C"
        exit_with_error(
            f"stopped ({reason}): to resume from the last checkpoint, run the same command again",
            143 if "SIGTERM" in reason else 130,
        )


def _run_cv(file: Path, overrides: list[str], new: bool, trust: tuple[str, ...]) -> None:
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
    exp = load_experiment(file, overrides, trust)
    signal.signal(signal.SIGTERM, raise_interrupt)

    from competition.datasets.demo import ensure_demo

    if ensure_demo(exp.competition, overrides):
        console.print(f"created the demo competition {exp.competition.name} in {exp.competition.root}")

    from competition.fork_server import close_shared_server
    from competition.postprocessing.ordering import check_affine
    from competition.runs.baselines import baseline_lines
    from competition.runs.fold import mixed_environments
    from competition.tracking.sync import MlflowSync
    from competition.training.cross_validate import format_seed_gain, locked_run, open_run, run_cv
    from competition.training.soup_selection import format_soup

    run = open_run(exp, f"{exp.competition.name}-{file.stem}", new=new)
    check_affine(run)
    console.print(f"{format_count(len(run.cases), 'case')}{_selection_note(run)}", soft_wrap=True)
    for note in _case_warnings(run):
        console.print(f"note: {note}", soft_wrap=True, markup=False)

    say = plain_printer(console)
    context = Context(trust, say, terminal_bar(console))
    with locked_run(run, context, LOCK_PATIENCE) as run:
        say(f"run {run.folder}")
        with MlflowSync(run.folder, run.exp), FoldBars(run, console) as bars:
            summary = run_cv(run, context, bars.update)
            bars.close()
            close_shared_server()  # the next steps may need the memory of this process
            tuned = _score_postprocessing(run, summary, context)
    console.print(cv_table(summary, run))
    for line in [
        *(f"note: {remark}" for remark in mixed_environments(run.results())),
        *format_seed_gain(summary.seeds),
        *format_soup(summary.soup),
        *tuned,
        *baseline_lines(run),
        *skipped_lines(run),
    ]:
        say(line)
    say(f"Files: {run.folder}")
    say(_next_command(file, exp.competition, overrides, len(run.cases), trust))
    say(f"or:   maskfold ui   ({_table_link(run)})")


def _table_link(run: Run) -> str:
    """Return the text `the table of runs`; if the run was logged to MLflow, with a link to this table."""
    from competition.tracking.store import DEFAULT_ADDRESS, find_mlflow_store, project_root, view_link
    from competition.tracking.sync_state import read_sync_state

    store = find_mlflow_store(project_root(run.folder))
    experiment = read_sync_state(run.folder, store.display_uri).experiment
    if not experiment:
        return "the table of runs"
    return f"the table of runs: {view_link(store.display_uri if store.is_server else DEFAULT_ADDRESS, experiment)}"


def _selection_note(run: Run) -> str:
    """Return a note on how many cases are excluded and how many have a weight; an empty text if there are none."""
    from competition.data.selection import WEIGHT

    excluded = len(run.cases.attrs.get("excluded", []))
    weighted = int((run.cases[WEIGHT] != "1").sum()) if WEIGHT in run.cases.columns else 0
    note = (
        f", {format_count(excluded, 'more case')} left out of all folds and scores (train.exclude)" if excluded else ""
    )
    return note + (f", {format_count(weighted, 'case')} with a weight (train.weights)" if weighted else "")


def _case_warnings(run: Run) -> list[str]:
    """Return warnings about the cases: skipped cases, missing masks, duplicate images."""
    notes = [f"case {case} is skipped: {reason}" for case, reason in run.cases.attrs.get("skipped", [])]
    conflicting = run.folds.attrs.get("conflicting", [])
    unlabelled = sum(json.loads(masks).get("rows") == [] for masks in run.cases["masks"])
    if unlabelled:
        notes.append(
            f"{unlabelled} of {format_count(len(run.cases), 'case')} {has_or_have(unlabelled)} no row in "
            f"{run.exp.competition.train.rle}; a case without a row gets an empty mask"
        )
    for ids in run.folds.attrs.get("duplicates", []):
        masks = " but different masks" if ids in conflicting else ""
        notes.append(f"the cases {', '.join(ids)} have the same image{masks}, so they are kept in the same fold")
    return notes


def _score_postprocessing(run: Run, summary: CvSummary, context: Context) -> list[str]:
    """Score the post-processing of the YAML, or tune it if all folds are finished; return lines with the result."""
    settings = run.exp.postprocess
    if not settings.is_scored or not summary.cases:
        return []
    validated_folds = {result["fold"] for result in summary.folds}
    if settings.tune and (missing := [str(fold) for fold in run.fold_numbers() if fold not in validated_folds]):
        folds, are, them = ("folds", "are", "them") if len(missing) > 1 else ("fold", "is", "it")
        return [
            (
                f"post-processing is not tuned, because tuning (postprocess.tune) needs all folds, and {folds} "
                f"{join_names(missing)} {are} not finished; folds.run=[{','.join(missing)}] trains {them}"
            )
        ]
    from competition.ensembling.expected import estimate_score
    from competition.postprocessing.tuning import own_steps_line
    from competition.runs.blend import Ensemble

    if not settings.tune:
        context.say("scoring the post-processing of the YAML on the out-of-fold predictions")
        try:
            expected = estimate_score(Ensemble((run,), (1.0,)), summary.cases, context, store_untuned=True)
        except MaskfoldError as error:  # the table of the network's own scores must be printed all the same
            return [f"note: the post-processing of the YAML cannot be scored: {error}"]
        return [own_steps_line(expected.score)]
    context.say(
        "tuning the post-processing on the out-of-fold predictions; if you stop it with Ctrl-C, the trained folds stay"
    )
    tuned = estimate_score(Ensemble((run,), (1.0,)), summary.cases, context).tuning
    return tuned.report_lines() if tuned is not None else []


def skipped_lines(run: Run) -> list[str]:
    """Return a list with one line that names the skipped cases; an empty list if no case was skipped."""
    from competition.runs.run import SKIPPED_FILE

    ids = [case for case, _ in run.skipped]
    more = and_more(len(ids), 5, "case")
    return (
        [f"{skipped_cases_line(run)}: {', '.join(ids[:5])}{more}; the reasons are in {run.folder / SKIPPED_FILE}"]
        if ids
        else []
    )


def _next_command(file: Path, comp: Competition, overrides: list[str], cases: int, trust: tuple[str, ...] = ()) -> str:
    """Return a line that suggests the next command after `maskfold cv`.

    The command is `report` if the competition has no test cases, and `export` if the test set seems to be hidden. It
    is `predict`, which writes label files, if the YAML sets neither a sample submission nor a format of the submission.
    Otherwise it is `submit`.

    Args:
        file: the experiment's YAML.
        comp: the experiment's competition.
        overrides: `key=value` overrides of the command.
        cases: number of training cases.
        trust: packages that the user trusts with `--trust`; the suggested command needs the same option.
    """
    from competition.data.case_files import count_test_images, has_hidden_test

    run_arguments = shlex.join([str(file), *overrides, *_trust_options(trust)])
    if comp.test is None:
        return f"Next: maskfold report {run_arguments}   (writes an HTML report)"
    if has_hidden_test(test_count := count_test_images(comp), cases):
        shown = f"only {format_count(test_count, 'test case')} here" if test_count else "no test case here"
        output = f"bundles/{comp.name}   (for a notebook of the host, whose test set seems to be hidden: {shown})"
        return f"Next: maskfold export {run_arguments} -o {output}"
    files = comp.submission.files
    if comp.submission.sample is None and comp.submission.profile is None and files is None:
        images = comp.test.images if isinstance(comp.test.images, str) else next(iter(comp.test.images.values()))
        folder = comp.root / re.split(r"[{*]", images)[0].rpartition("/")[0]
        return (
            f"Next: maskfold predict {run_arguments} --images {shlex.quote(str(folder))} -o "
            f"submissions/{comp.name}   (writes label files of the test cases)"
        )
    written = "CSV" if files is None else "label files"
    return f"Next: maskfold submit {run_arguments}   (predicts the test cases and writes the {written})"


def _trust_options(trust: tuple[str, ...]) -> list[str]:
    """Return the words of the options `--trust` and `--allow` that the user gave, for a suggested next command.

    That command needs the same options.
    """
    from competition.config.arguments import allowed_keys

    pairs = [*(("--trust", package) for package in trust), *(("--allow", key) for key in allowed_keys())]
    return [word for pair in pairs for word in pair]


# Studies

STUDY_TABLE_WIDTH = 200  # columns of tables if the output is not a terminal


@exit_on_signal("stopped: to resume the interrupted trial, run the same command again")
def study_command(
    file: Path,
    overrides: list[str],
    trials: int | None,
    storage: str | None,
    promote: int | None,
    trust: tuple[str, ...],
) -> None:
    """Run `maskfold study`; `competition.cli.commands_runs.study` describes the arguments."""
    for name, number in (("trials", trials), ("promote", promote)):
        if number is not None and number < 1:
            raise MaskfoldError(
                f"--{name}: found {number}, expected 1 or more.", f"Correct --{name}, or remove it.", status=2
            )
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=STUDY_TABLE_WIDTH)

    say = plain_printer(console)
    from competition.datasets.demo import ensure_demo
    from competition.study.space import ExperimentSource
    from competition.study.study import open_study, run_study, track_study

    source = ExperimentSource(file, tuple(overrides), trust)
    ensure_demo(source.load().competition, overrides)
    search = open_study(source, storage)
    count = search.config.trials if trials is None else trials
    say(f"study {search.name}: {len(search.finished)} of {format_count(count, 'trial')} finished")
    with track_study(search):
        if promote is None:
            run_study(search, count, say)
        rows = promote_best(search, promote, console, say) if promote is not None else []
        print_results(search, console, say, [] if rows else _next_study_command(file, overrides, storage, trust))


def print_results(search: StudySession, console: Console, say: Callable[[str], None], command: list[str]) -> None:
    """Print a study's trials as a table, write its figures and its HTML page, and suggest the next command.

    Args:
        search: the study.
        console: console for the table.
        say: function that prints a line.
        command: the suggested next command as words; an empty list means that none is suggested.
    """
    from competition.report.study import write_study_page
    from competition.study.study import draw_figures, read_trials, study_folder_lock, write_trials

    with study_folder_lock(search.folder):
        trials = write_trials(search)
        console.print(trials_table(search, trials))
        figures = draw_figures(search)
        page = write_study_page(search.folder, search.folder / "report.html")
    say(f"HTML page: {page}")
    if figures:
        say(f"Figures: {', '.join(path.name for path in figures)} in {search.folder}")
    best = read_trials(search.folder)["best"]
    for trial in [trial for trial in search.finished if trial.number in best]:
        say(
            f"Best: trial {trial.number}, {', '.join(f'{value:.4f}' for value in trial.values)}: "
            f"{' '.join(trial.user_attrs.get('words', []))}"
        )
    if not best and any(trial["state"] == "complete" for trial in trials):
        say("No complete trial satisfies the constraints of the study.")
    if best and command and search.source.load().folds.run is not None:
        say(f"Next: {shlex.join(command)}   (trains the best three trials on all folds)")


def trials_table(search: StudySession, trials: list[dict[str, Any]]) -> Table:
    """Return a table with one row per trial.

    The table does not say why a trial failed or violates a constraint; the study's HTML page does.
    """
    keys = list(search.config.space)
    table = Table(title=f"{search.name}: {format_count(len(trials), 'trial')}")
    for name in ("trial", "state", *search.config.objectives, "minutes", *(key.rpartition(".")[2] for key in keys)):
        table.add_column(name)
    for trial in trials:
        values = [f"{value:.4f}" for value in trial["values"] or []] or [""] * len(search.config.objectives)
        if trial["state"] != "complete":
            values = [""] * len(search.config.objectives)
        params = [_format_value(trial["params"].get(key)) for key in keys]
        minutes = "" if trial["minutes"] is None else f"{trial['minutes']:.1f}"
        state = "out of bounds" if trial["state"] == "complete" and trial["reason"] else trial["state"]
        table.add_row(str(trial["number"]), state, *values, minutes, *params)
    return table


def _format_value(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _next_study_command(file: Path, overrides: list[str], storage: str | None, trust: tuple[str, ...]) -> list[str]:
    """Return the command that trains the best trials on all folds, with the overrides that identify the study."""
    from competition.study.storage import hide_password

    return [
        "maskfold",
        "study",
        str(file),
        *overrides,
        "--promote",
        "3",
        *(["--storage", hide_password(storage)] if storage else []),
        *_trust_options(trust),
    ]


def promote_best(search: StudySession, count: int, console: Console, say: Callable[[str], None]) -> list[Any]:
    """Train the best trials on all folds, print each trial's gain over the YAML's own settings, and return the trials.

    The gain is computed on the folds that the study did not use. If the study used all folds, the gain is computed on
    all folds, and a warning says that the gain is too high.
    """
    from competition.study.promote import promote_best_trials

    promoted = promote_best_trials(search, count, say)
    has_unseen = promoted[0].unseen_score is not None
    baseline = f"trial {promoted[0].number}"
    gain_columns = (
        ["unseen folds", f"gain over {baseline} on unseen folds"]
        if has_unseen
        else [f"gain over {baseline} on the study's folds"]
    )
    table = Table(title=f"{search.name}: the best trials on all folds")
    for name in ("trial", "all folds", *gain_columns, "95 %", "overrides"):
        table.add_column(name)
    for trial in promoted:
        gain = trial.gain
        table.add_row(
            str(trial.number),
            f"{trial.score:.4f}",
            *([] if trial.unseen_score is None else [f"{trial.unseen_score:.4f}"]),
            "" if gain is None else f"{gain.value:+.4f}",
            "" if gain is None else f"{gain.low:+.4f} to {gain.high:+.4f}",
            " ".join(trial.overrides),
        )
    console.print(table)
    if not has_unseen:
        say(
            "warning: these gains are measured on the folds by which the study selected the trials, so the gains "
            "are too high. To get an unbiased gain, search with some of the folds, e.g. folds.run=[0,1]; the other "
            "folds then measure the gain."
        )
    for trial in promoted:
        say(f"trial {trial.number}: {trial.run_folder}")
    return promoted


# Finished runs


@exit_on_signal("stopped: no HTML page was written")
def report_command(words: list[str], output: Path | None, trust: tuple[str, ...]) -> None:
    """Run `maskfold report`; `competition.cli.commands_runs.report` describes the arguments."""
    console = Console(highlight=False, markup=False)

    say = plain_printer(console)
    names, overrides = split_runs_and_overrides(words)
    if len(names) != 1:
        raise MaskfoldError(
            f"maskfold report: found {len(names)} runs or studies, expected 1.",
            "Give exactly one run or study.",
            status=2,
        )

    from competition.report.run import write_report
    from competition.report.study import write_study_page
    from competition.runs.find import find_run, find_study

    if (study := find_study(names[0])) is not None:
        if overrides:
            raise MaskfoldError(
                f"{study} is a study, so key=value arguments have no effect on its report: found {overrides[0]}.",
                f"Remove {overrides[0]}.",
                status=2,
            )
        page = write_study_page(study, output or study / "report.html")
    else:
        run = find_run(names[0], overrides, trust, say)
        page = write_report(run, output or run.folder / "report.html", Context(trust, say))
        if output is None:
            _upload_page(run, say)
    size = page.stat().st_size / 2**20
    say(f"HTML page: {page} (a single file, {size:.1f} MiB); its pictures are also in {page.with_suffix('')}")


def _upload_page(run: Run, say: Callable[[str], None]) -> None:
    """Upload the HTML page of a run to MLflow, if MLflow has the run; print an error of MLflow only as a warning."""
    from competition.runs.lock import lock_if_free
    from competition.tracking.sync import upload_finished_run

    with lock_if_free(run.folder) as is_held:
        if is_held and upload_finished_run(run.folder, run.exp):
            say("The HTML page is also in MLflow, among the artifacts of the run")


@exit_on_signal("stopped: nothing was written")
def compare_command(words: list[str], output: Path | None, cases: int, trust: tuple[str, ...]) -> None:
    """Run `maskfold compare`; `competition.cli.commands_runs.compare` describes the arguments."""
    console = Console(highlight=False, markup=False)

    say = plain_printer(console)
    names, overrides = split_runs_and_overrides(words)
    if len(names) != 2:
        raise MaskfoldError(
            f"maskfold compare: found {len(names)} run{'s' * (len(names) != 1)}, expected 2.",
            "Give two runs, each by its experiment's YAML, its folder or its hash.",
            status=2,
        )

    from competition.ensembling.compare import compare_two_runs
    from competition.report.compare import (
        DIFFERENCE_HEADER,
        check_comparison_output,
        difference_cells,
        write_comparison,
    )
    from competition.runs.find import find_run

    first, second = (find_run(name, overrides, trust, say) for name in names)
    folder = output or Path("reports") / f"compare-{first.folder.name}-{second.folder.name}"
    if folder.exists() and not folder.is_dir():
        raise MaskfoldError(f"{folder} is a file, expected a folder.", "Give another folder with -o.", status=2)
    check_comparison_output(folder, [first, second])
    comparison = compare_two_runs(first, second, progress_bar(console, "cases compared"))
    for note in comparison.notes:
        say(note)
    say(
        f"{format_count(len(comparison.rows), 'out-of-fold case')}; the 95 % interval of a difference is a paired "
        "bootstrap interval, and p is from Wilcoxon's signed-rank test"
    )
    rows = [difference_cells(difference, comparison) for difference in comparison.differences]
    if console.is_terminal:
        table = Table()
        for column, name in enumerate(DIFFERENCE_HEADER):
            table.add_column(name, justify="left" if column < 2 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        for line in format_columns(DIFFERENCE_HEADER, rows):
            say(line)
    page = write_comparison(comparison, folder, cases, Context(trust, say))
    changed = comparison.most_changed(cases)
    if changed:
        changes = ", ".join(f"{case} {change:+.4f}" for case, change in changed)
        say(f"Cases whose scores differ most (B minus A): {changes}")
    kind = "HTML page with pictures" if changed else "HTML page"
    say(f"{kind}: {page}; scores of each case and class: {folder / 'cases.csv'}")


@exit_on_signal("stopped: nothing was written")
def review_command(words: list[str], output: Path | None, pictures: int, trust: tuple[str, ...]) -> None:
    """Run `maskfold review`; `competition.cli.commands_runs.review` describes the arguments."""
    console = Console(highlight=False, markup=False)
    say = plain_printer(console)
    names, overrides = split_runs_and_overrides(words)
    if len(names) != 1:
        raise MaskfoldError(f"maskfold review: found {len(names)} runs, expected 1.", "Give exactly one run.", status=2)

    from competition.report.review import check_review_output, describe, write_review
    from competition.review.search import review_run
    from competition.runs.find import find_run

    run = find_run(names[0], overrides, trust, say)
    page = output or Path("reports") / f"review-{run.name}-{run.folder.name}.html"
    check_review_output(page, run)
    context = Context(trust, say, terminal_bar(console))
    review = review_run(run, context)
    table, kept = write_review(review, page, pictures, context)
    kinds = Counter(finding.kind for finding in review.findings)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    affected = len({finding.id for finding in review.findings})
    number = format_count(len(review.findings), "finding")
    found = f"{number} in {affected} of {format_count(review.cases, 'case')}"
    say(found + (f": {counts}" if counts else ""))
    rows = [(finding.id, describe(finding), f"{finding.score:.3f}") for finding in review.findings[:SHOWN_FINDINGS]]
    for line in format_columns(("case", "finding", "score"), rows) if rows else ():
        say(line)
    if kept:
        say(f"The answers for {format_count(kept, 'case')} that were already in {table} are kept.")
    say(f"HTML page: {page}; table for your answers: {table}")
    if rows:
        say(
            f"Next: write x into the column `exclude` of {table} for each case to leave out. Then: maskfold cv "
            f"EXPERIMENT competition.train.exclude={table}"
        )


@exit_on_signal("stopped: nothing was registered")
def register_command(words: list[str], best: bool, trust: tuple[str, ...]) -> None:
    """Run `maskfold register`; `competition.cli.commands_runs.register` describes the arguments."""
    console = Console(highlight=False, markup=False)

    say = plain_printer(console)
    names, overrides = split_runs_and_overrides(words)
    if len(names) > 1:
        raise MaskfoldError(
            f"maskfold register: found {len(names)} runs, expected 1.", "Give exactly one run.", status=2
        )

    from competition.export.mlflow_model import describe_run, model_fingerprint, version_tags, write_model
    from competition.postprocessing.ranking import best_run
    from competition.runs.cascade.first_stage import refuse_first_stage
    from competition.runs.find import find_run
    from competition.runs.imported import refuse_imported
    from competition.runs.lock import ensure_lock
    from competition.tracking.registry import register_model

    run: Run = (best_run if best else find_run)(names[0], overrides, trust, say)
    refuse_imported([run], "be registered")
    refuse_first_stage([run], "be registered")
    say(f"run {run.folder}: {describe_run(run)}")
    with ensure_lock(run.folder, LOCK_PATIENCE, say):  # the run's folder records what was uploaded to MLflow
        version = register_model(
            run.folder,
            run.exp,
            lambda folder, place: write_model(run, folder, place),
            model_fingerprint(run),
            version_tags(run),
            describe_run(run),
            best,
        )
    say(
        f"{'registered' if version.is_new else 'already registered'}: {version.name}, version {version.number}"
        + (f", also models:/{version.name}@best" if best else "")
    )
    say(
        f'Next: MLFLOW_TRACKING_URI={version.store} python -c "import mlflow; '
        f"print(mlflow.pyfunc.load_model('{version.uri}').predict(['{_example_image(run)}'])[0].shape)\""
    )


def _example_image(run: Run) -> str:
    """Return the path of the run's first training image, as an example of the model's input."""
    files = next(iter(json.loads(run.cases["images"].iloc[0]).values()))
    return str(Path(run.exp.competition.root) / (files if isinstance(files, str) else files[0]))
