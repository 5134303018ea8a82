"""Run the commands that use trained runs: predict, submit, export, score, upload, ledger."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from competition.cli.console import (
    confirm_or_exit,
    exit_on_signal,
    format_columns,
    format_interval,
    plain_printer,
    progress_bar,
    split_runs_and_overrides,
)
from competition.config.loading import load_competition
from competition.context import Context
from competition.errors import MaskfoldError
from competition.records import finite_or_none
from competition.text import and_more, format_count, format_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from competition.leaderboard.ledger import Ledger, UploadRecord
    from competition.runs.run import Run
    from competition.submission.score import ScoreCard
    from competition.submission.submit import SubmissionResult


@exit_on_signal("stopped: nothing was written")
def submit_command(
    words: list[str], weights: str | None, output: Path | None, out_of_fold: bool, trust: tuple[str, ...]
) -> None:
    """Run `maskfold submit`; `competition.cli.commands_submit.submit` describes the arguments."""
    console = Console(highlight=False)

    say = plain_printer(console)
    names, overrides = split_runs_and_overrides(words)
    run_weights = parse_weights(weights)

    from competition.runs.find import find_run

    runs = [find_run(name, overrides, trust, say) for name in names]
    if out_of_fold:
        _write_out_of_fold(runs, output, say)
        return

    from competition.submission.submit import submit
    from competition.tracking.submissions import log_submission

    if runs[0].exp.competition.submission.files is not None:
        from competition.submission.files import submit_files

        done = submit_files(runs, run_weights, output, trust, say, progress=progress_bar(console))
        unit, subject = "label file", "files"
    else:
        done = submit(runs, run_weights, output, trust, say, progress=progress_bar(console))
        unit, subject = "row", "file"
    say(
        f"{done.path}: {format_count(done.validation.rows, unit)}, {done.validation.empty} of them with an empty mask; "
        f"the {subject} {'is' if subject == 'file' else 'are'} valid"
    )
    for line in _expected_score_lines(done):
        say(line)
    if log_submission(runs[0].folder, runs[0].exp, done.path, done.summary_path) is not None:
        say(f"Logged to MLflow with the run {runs[0].folder.name}, including {done.summary_path.name}")
    say(f"Next: submit the {subject} to the host of the competition. maskfold ui shows the run in MLflow")


def _expected_score_lines(done: SubmissionResult) -> list[str]:
    expected = done.expected
    if expected is None:
        return ["Expected score: unknown, because none of the runs has out-of-fold predictions"]
    nested = "nested out of fold" if expected.tuning is not None and expected.tuning.kept else "out of fold"
    return [
        (
            f"Expected {expected.metric}: {expected.score:.4f} ({nested}, {format_count(expected.cases, 'case')}); for "
            f"{format_count(expected.test_cases, 'test case')}, the score is between {expected.low:.4f} and "
            f"{expected.high:.4f} with a probability of 95 %"
        )
    ]


def _write_out_of_fold(runs: list[Run], output: Path | None, say: Callable[[str], None]) -> None:
    from competition.submission.submit import SUBMISSIONS_FOLDER, check_csv_output, write_oof_submission

    if len(runs) != 1:
        raise MaskfoldError(f"--out-of-fold: found {len(runs)} runs, expected 1.", "Name exactly one run.", status=2)
    run = runs[0]
    path = output or SUBMISSIONS_FOLDER / run.exp.competition.name / f"out-of-fold-{run.folder.name}.csv"
    check_csv_output(path, runs)
    verdict, score = write_oof_submission(run, path)
    rows = format_count(verdict.rows, "row")
    say(f"{path}: {rows} of training cases; {run.exp.competition.metric.name} {score:.10f}")
    say(f"Next: maskfold score {path} --competition …/competition.yaml   (computes the same score from the file)")


def parse_weights(text: str | None) -> list[float] | str | None:
    """Parse the option --weights to `auto`, a list of numbers, or None if the option is missing.

    Raises:
        MaskfoldError: the text is neither `auto` nor numbers (exit status 2).
    """
    if text is None or text == "auto":
        return text
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise MaskfoldError(
            f"--weights: found `{text}`, expected `auto` or numbers separated by commas.",
            "Write for example --weights 0.6,0.4.",
            status=2,
        ) from None


@exit_on_signal("stopped: the files written so far are complete")
def predict_command(
    words: list[str], images: Path, output: Path, pictures: int, trust: tuple[str, ...], label_map: bool = False
) -> None:
    """Run `maskfold predict`; `competition.cli.commands_submit.predict` describes the arguments."""
    console = Console(highlight=False)

    say = plain_printer(console)
    names, overrides = split_runs_and_overrides(words)

    from competition.runs.find import find_run
    from competition.submission.label_files import predict_images

    runs = [find_run(name, overrides, trust, say) for name in names]
    predictions = predict_images(
        runs,
        images,
        output,
        Context(trust, say),
        progress=progress_bar(console),
        pictures=pictures,
        label_map=label_map,
    )
    unit = "voxels" if runs[0].exp.competition.dimensions == 3 else "pixels"
    for prediction in predictions[:MAX_LISTED]:
        counts = ", ".join(f"{name} {count:,}" for name, count in prediction.pixels.items())
        say(f"{prediction.files[0]}: {unit} per class: {counts}")
    if more := and_more(len(predictions), MAX_LISTED, "case"):
        say(more.strip())
    say(
        f"{format_count(len(predictions), 'case')}, "
        f"{format_count(sum(len(prediction.files) for prediction in predictions), 'file')} in {output}"
        + (
            f"; pictures of {format_count(min(pictures, len(predictions)), 'case')} in {output / 'pictures'}"
            if pictures
            else ""
        )
    )


@exit_on_signal("stopped: no bundle was written")
def export_command(
    words: list[str],
    output: Path,
    weights: str | None,
    trust: tuple[str, ...],
    *,
    zipped: bool,
    onnx: bool,
    wheels: bool,
    hours: float,
    container: str | None = None,
    input_slug: str | None = None,
    output_slug: str | None = None,
) -> None:
    """Run `maskfold export`; `competition.cli.commands_submit.export` describes the arguments."""
    console = Console(highlight=False)

    say = plain_printer(console)
    names, overrides = split_runs_and_overrides(words)
    run_weights = parse_weights(weights)

    from competition.export.bundle import ExportOptions, export_runs
    from competition.runs.find import find_run

    runs = [find_run(name, overrides, trust, say) for name in names]
    options = ExportOptions(zipped, onnx, wheels, hours, container, input_slug, output_slug)
    done = export_runs(runs, output, run_weights, options, Context(trust, say))
    say(
        f"{done.folder}: {format_count(done.networks, 'network')}, {done.size / 2**20:.1f} MiB; requires the "
        f"{len(done.pins)} packages of requirements.txt. A test prediction of one patch succeeded"
    )
    if done.archive is not None:
        say(f"{done.archive}: {done.archive.stat().st_size / 2**20:.1f} MiB")
    if container is not None:
        say(f"Next: docker build --platform linux/amd64 -t {runs[0].exp.competition.name.lower()} {done.folder}")
        return
    say(f"Next: python {done.folder}/run.py --input {runs[0].exp.competition.root} --output submission.csv")


# Scores and uploads


def score_command(
    file: Path,
    competition: Path,
    solution: Path | None,
    table: Path | None,
    overrides: list[str],
    trust: tuple[str, ...] = (),
) -> None:
    """Run `maskfold score`; `competition.cli.commands_submit.score` describes the arguments."""
    # Accept `competition.root=…` too, because hints name the keys as in an experiment's YAML.
    comp = load_competition(competition, [override.removeprefix("competition.") for override in overrides], trust)
    inputs = {path.resolve() for path in (file, solution) if path is not None}
    if table is not None and (table.is_dir() or table.resolve() in inputs):
        raise MaskfoldError(
            f"--table: {table} is a folder or one of the input files, expected the name of another file.",
            "Give the name of a new file.",
            status=2,
        )

    from competition.submission.score import score_submission

    card = score_submission(file, comp, solution)
    console = Console(highlight=False, markup=False)
    console.print(_score_table(card, file.name))
    console.print(f"{card.metric}: {card.score:.10f}\ncases: {card.cases}", soft_wrap=True)
    if table is not None:
        from competition.tables import write_table

        table.parent.mkdir(parents=True, exist_ok=True)
        write_table(card.table, table)
        console.print(f"{table}: scores of each case and class", soft_wrap=True, markup=False)


def _score_table(card: ScoreCard, name: str) -> Table:
    """Return a table with one row per class, then the score of all classes together and its 95 % interval."""
    table = Table(title=name)
    table.add_column("class")
    for column in (card.metric, "Dice"):
        table.add_column(column, justify="right", no_wrap=True)
    for cls, score in card.classes.items():
        table.add_row(cls, format_number(finite_or_none(score)), format_number(finite_or_none(card.dice[cls])))
    table.add_section()
    table.add_row("all", format_number(finite_or_none(card.score)), "")
    table.add_row("95 %", format_interval(finite_or_none(card.low), finite_or_none(card.high)), "")
    return table


UPLOAD_HINT, UPLOAD_DECLINED = "Add --yes to submit without confirmation.", "nothing was submitted"


@exit_on_signal("stopped: to see whether the submission was counted, run `maskfold ledger`")
def upload_command(
    file: Path | None,
    overrides: list[str],
    message: str | None,
    competition: str | None,
    yes: bool,
    notebook: str | None,
    version: int | None,
    output: str,
) -> None:
    """Run `maskfold upload`; `competition.cli.commands_submit.upload` describes the arguments."""
    console = Console(highlight=False)

    say = plain_printer(console)
    code = _code_submission(file, notebook, version, output)

    from competition.leaderboard.kaggle import connect_kaggle, fetch_limits
    from competition.leaderboard.ledger import Ledger
    from competition.leaderboard.noise import format_time
    from competition.leaderboard.upload import make_record, prepare_upload, submit_to_kaggle, validate_upload

    parcel = prepare_upload(file, competition, overrides)
    if file is not None and parcel.comp is not None:
        verdict = validate_upload(file, parcel.comp)
        rows = format_count(verdict.rows, "row")
        say(f"{file}: {rows}, {verdict.empty} of them with an empty mask; the file is valid")
    ledger = Ledger(parcel.competition)
    previous = ledger.read()
    record, scores = make_record(parcel, message, code, previous)
    for earlier in previous:
        if record.sha256 and earlier.sha256 == record.sha256:
            score = f", public score {earlier.public:.4f}" if earlier.public is not None else ""
            say(
                f"warning: this file was submitted before, on {format_time(earlier)} UTC{score}; submitting it again "
                "will give the same score"
            )
    if record.score is not None:
        low, high = record.expected.get("low"), record.expected.get("high")
        interval = (
            (
                f"; on {record.public_cases} public cases, the score is between {low:.4f} and {high:.4f} with a "
                "probability of 95 %"
            )
            if low is not None
            else ""
        )
        say(f"CV {record.metric['name']} {record.score:.4f}{interval}")
    elif file is not None:
        say(
            "note: the CV score of this file is unknown, because the JSON that `maskfold submit` writes next to "
            "it is missing or belongs to another file"
        )
    api = connect_kaggle()
    limits = fetch_limits(api, parcel.slug)
    if limits is None:
        say(f"Kaggle does not report how many submissions to {parcel.slug} are left today")
    else:
        limit = "in total" if limits.by_total else "today"
        say(f"{parcel.slug}: submissions used {limit}: {limits.used} of {limits.used + limits.left}")
        if limits.left <= 0:
            raise MaskfoldError(
                f"No submission to {parcel.slug} is left {limit}.",
                "The limit holds for the whole competition, so you cannot submit again."
                if limits.by_total
                else "Wait until 00:00 UTC, when Kaggle resets the daily limit.",
            )
    submitted = file.name if code is None and file is not None else f"{notebook} version {version}"
    confirm_or_exit(f"Submit {submitted} with the message “{record.message}”?", yes, UPLOAD_HINT, UPLOAD_DECLINED)
    record = submit_to_kaggle(api, parcel, ledger, record, scores)
    say(f"Submitted{f' as {record.ref}' if record.ref is not None else ''}: “{record.message}”")

    from competition.tracking.submissions import log_upload

    files = () if file is None else (file, *([file.with_suffix(".json")] if parcel.summary else []))
    if (run := log_upload(asdict(record), files)) is not None:
        ledger.write(replace(record, mlflow=run))
    say("Next: maskfold ledger   (shows the scores, and which differences are noise)")


def _code_submission(
    file: Path | None, notebook: str | None, version: int | None, output: str
) -> dict[str, object] | None:
    """Return the notebook, version and output file to submit; return None if the user submits a CSV.

    Raises:
        MaskfoldError: the options contradict each other (exit status 2).
    """
    if notebook is None:
        if version is not None:
            raise MaskfoldError(
                "--version requires --notebook, which is missing.", "Add --notebook OWNER/NAME.", status=2
            )
        if file is None:
            raise MaskfoldError(
                "No file to submit is given.", "Give a CSV, or --notebook OWNER/NAME --version N.", status=2
            )
        return None
    if not re.fullmatch(r"[\w-]+/[\w-]+", notebook):
        raise MaskfoldError(
            f"--notebook: found {notebook}, expected OWNER/NAME.", "Copy OWNER/NAME from the notebook's URL.", status=2
        )
    if version is None:
        raise MaskfoldError(
            f"--notebook {notebook} requires --version, which is missing.",
            "Add --version N, the version of the notebook.",
            status=2,
        )
    return {"kernel": notebook, "version": version, "file": output}


# Ledger

MAX_LISTED = 5  # number of predictions whose sizes `predict` prints
LEDGER_HEADER = ("", "date, UTC", "file", "CV", "95 %", "95 % of boards", "public", "private", "changed")
MAX_SHOWN_CHANGES = 2  # maximum number of changes in a row of the table


@exit_on_signal("stopped")
def ledger_command(
    words: list[str],
    refresh: bool | None,
    output: Path | None,
    competition: str | None,
    file: Path | None,
    public: float | None,
    private: float | None,
    message: str | None,
) -> None:
    """Run `maskfold ledger`; `competition.cli.commands_submit.ledger` describes the arguments."""
    console = Console(highlight=False, markup=False)

    say = plain_printer(console)
    from competition.leaderboard.ledger import list_ledgers
    from competition.report.ledger import check_ledger_output

    if output is not None:
        check_ledger_output(output)
    names = [word for word in words if "=" not in word]
    if file is not None:
        names = [_add_upload(file, competition, [word for word in words if "=" in word], public, private, message, say)]
    elif public is not None or private is not None:
        raise MaskfoldError(
            "--public and --private require --add, which is missing.",
            "Add --add FILE, the file that has this score.",
            status=2,
        )
    selected = [ledger for ledger in list_ledgers() if not names or ledger.competition in names]
    if not selected:
        raise MaskfoldError(
            f"There are no submissions yet{f' for {names[0]}' if names else ''}: submissions/*/ledger is empty.",
            "Submit a file with `maskfold upload`, or add a file that was submitted elsewhere: --add FILE "
            "--public 0.71.",
        )
    if output is not None and len(selected) > 1:
        raise MaskfoldError(
            "--output requires one competition, but the ledger has "
            f"{', '.join(ledger.competition for ledger in selected)}.",
            "Add the name of one of these competitions to the command.",
            status=2,
        )
    for ledger in selected:
        _fetch_scores(ledger, refresh, say)
        _print_ledger(ledger, output, console, say)


def _add_upload(
    file: Path,
    competition: str | None,
    overrides: list[str],
    public: float | None,
    private: float | None,
    message: str | None,
    say: Callable[[str], None],
) -> str:
    from competition.leaderboard.ledger import Ledger
    from competition.leaderboard.upload import add_manual_entry, prepare_upload
    from competition.tracking.submissions import log_upload

    parcel = prepare_upload(file, competition, overrides, at_kaggle=False)
    ledger = Ledger(parcel.competition)
    before = {record.id: record for record in ledger.read()}
    record = add_manual_entry(parcel, ledger, public, private, message)
    for name in ("public", "private"):
        old, new = getattr(before.get(record.id), name, None), getattr(record, name)
        if old is not None and old != new:
            say(f"note: the {name} score of {file} changed from {old:.4f} to {new:.4f}")
    if (run := log_upload(asdict(record), (file,))) is not None:
        ledger.write(replace(record, mlflow=run))
    return parcel.competition


def _fetch_scores(ledger: Ledger, refresh: bool | None, say: Callable[[str], None]) -> None:
    """Fetch scores from Kaggle if a score is missing; always with --refresh, never with --no-refresh.

    If Kaggle reports an error, the command prints a warning and continues. With --refresh, the error ends the command.
    """
    from competition.leaderboard import upload
    from competition.leaderboard.kaggle import connect_kaggle
    from competition.tracking.submissions import log_upload

    if refresh is False or not (refresh or any(record.awaiting_score for record in ledger.read())):
        return
    try:
        changed, unknown = upload.refresh_scores(connect_kaggle(), ledger)
    except MaskfoldError as error:
        if refresh:
            raise
        say(f"warning: the scores could not be updated. {error}")
        return
    if unknown:
        say(
            f"submissions of your team at Kaggle that the ledger does not have: {unknown}; to add a submission: "
            "maskfold ledger --add FILE --public SCORE"
        )
    changed_ids = {record.id for record in changed}
    not_logged = [record for record in ledger.read() if not record.mlflow and record.id not in changed_ids]
    for record in [*changed, *not_logged]:
        if (run := log_upload(asdict(record))) is not None:
            ledger.write(replace(record, mlflow=run))


def _print_ledger(ledger: Ledger, output: Path | None, console: Console, say: Callable[[str], None]) -> None:
    from competition.leaderboard.ledger import describe_changes
    from competition.leaderboard.noise import (
        NOISE_FORMULA,
        cv_lb_correlation,
        cv_lb_disagreements,
        public_overfit,
        selection_advice,
    )

    records = ledger.read()
    tables = {record.id: ledger.scores(record) for record in records}
    changed = [describe_changes(previous, record) for previous, record in zip([None, *records], records, strict=False)]
    rows = [
        _ledger_row(number, record, texts)
        for number, (record, texts) in enumerate(zip(records, changed, strict=True), 1)
    ]
    if console.is_terminal:
        table = Table(title=ledger.competition)
        for column, name in enumerate(LEDGER_HEADER):
            table.add_column(name, justify="left" if column in (1, 2, 8) else "right", no_wrap=column not in (2, 8))
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        say(ledger.competition)
        for line in format_columns(LEDGER_HEADER, rows):
            say(line)
    best = selection_advice(records, tables)
    notes = [
        str(cv_lb_correlation(records)),
        *public_overfit(records, tables),
        *cv_lb_disagreements(records),
        *([best] if best else []),
        NOISE_FORMULA,
    ]
    for note in notes:
        say(note)
    if output is not None:
        from competition.report.ledger import write_ledger

        say(f"Written: {write_ledger(output, ledger.competition, records, LEDGER_HEADER, rows, changed, notes)}")


def _ledger_row(number: int, record: UploadRecord, changes: list[str]) -> tuple[str, ...]:
    from competition.leaderboard.noise import format_time

    more = and_more(len(changes), MAX_SHOWN_CHANGES, "change")
    name = (
        Path(record.file).name
        if record.notebook is None
        else f"{record.notebook['kernel']} v{record.notebook['version']}"
    )
    public = record.status if record.public is None else _score_cell(record.public)
    errors = [f"error: {record.error}"] if record.error else []
    return (
        str(number),
        format_time(record),
        name,
        _score_cell(record.score),
        _interval_cell(record.cv),
        _interval_cell(record.expected),
        public,
        _score_cell(record.private),
        "; ".join([*errors, *changes[:MAX_SHOWN_CHANGES]]) + more,
    )


def _score_cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _interval_cell(interval: dict[str, float | None]) -> str:
    low, high = interval.get("low"), interval.get("high")
    return "" if low is None or high is None else f"{low:.3f}–{high:.3f}"
