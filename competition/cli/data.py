"""Run the commands that make, download, convert or check data: demo, fetch, dicom, explore."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from competition.cli.console import confirm_or_exit, exit_on_signal, format_columns, progress_bar
from competition.config.loading import load_competition
from competition.datasets.decathlon import HOMEPAGE, LICENCE, TASKS, find_task, remote_file_of
from competition.datasets.download import (
    check_free_space,
    download_and_unpack,
    format_size,
    is_nonempty_folder,
    suggest_next_command,
)
from competition.errors import MaskfoldError
from competition.leaderboard.kaggle import (
    KAGGLE_PREFIX,
    connect_kaggle,
    fetch_competition,
    list_competition_files,
    parse_competition_name,
)
from competition.text import format_count

if TYPE_CHECKING:
    from competition.explore import Exploration
    from competition.explore.types import Finding


def demo_command(name: str, output: Path | None, layout: str | None, seed: int) -> None:
    """Make a demo, or phantoms in the layout of a real data set; write the YAML files, and print the next command."""
    from competition.datasets.demo import make_demo, write_demo_experiment
    from competition.datasets.phantoms import LAYOUTS, make_phantom, next_command

    if layout is None and name in LAYOUTS:
        layout = name
    default = Path("data") / (name if layout is not None else f"demo{name}")
    folder = output or default
    if layout is None:
        make_demo(name, folder, seed=seed)
    else:
        make_phantom(layout, folder, seed=seed)
    file = write_demo_experiment(layout or name)
    usual = Path("data") / layout if layout is not None else default  # the root in the YAML
    is_usual = folder.absolute() == usual.absolute()
    command = f"maskfold cv {file.as_posix()}" + ("" if is_usual else f" {shlex.quote(f'competition.root={folder}')}")
    if layout is None:
        typer.echo(f"{folder}: the demo competition {name}. Next: {command}")
    else:
        typer.echo(f"{folder}: phantoms in the layout of {layout}. Next: {next_command(layout, folder)}")
        typer.echo(f"Then: {command}")


# Data sets from the network

DOWNLOAD_HINT, DOWNLOAD_DECLINED = "Add --yes to download without a question.", "nothing was downloaded"
MAX_LISTED_FILES = 10  # number of a competition's largest files to print


@exit_on_signal("stopped: to resume the download, run the same command again")
def fetch_command(name: str, output: Path, yes: bool) -> None:
    """Run `maskfold fetch`; `competition.cli.commands_train.fetch` describes the arguments."""
    console = Console(highlight=False)
    if name == "list":
        _print_tasks(console)
        return
    kaggle = name.startswith(KAGGLE_PREFIX)
    short = parse_competition_name(name) if kaggle else find_task(name).name
    folder = output / short
    if is_nonempty_folder(folder):
        _say(
            console,
            f"{folder} exists already, so nothing was downloaded; to download the data again, delete this folder",
        )
    elif kaggle:
        _from_kaggle(console, short, folder, yes)
    else:
        _from_decathlon(console, short, folder, yes)
    for line in suggest_next_command(short, folder):
        _say(console, line)


def _from_decathlon(console: Console, name: str, folder: Path, yes: bool) -> None:
    task = find_task(name)
    _say(console, f"{task.folder} ({task.description}): about {format_size(task.size)}, licence {LICENCE}, {HOMEPAGE}")
    check_free_space(folder, 2 * task.size)
    confirm_or_exit(f"Download {format_size(task.size)} to {folder}?", yes, DOWNLOAD_HINT, DOWNLOAD_DECLINED)
    source = remote_file_of(task)
    count = download_and_unpack(
        source, folder, lambda what: progress_bar(console, what), lambda line: _say(console, line)
    )
    _say(console, f"{folder}: {format_count(count, 'file')}")


def _from_kaggle(console: Console, name: str, folder: Path, yes: bool) -> None:
    api = connect_kaggle()
    listing = list_competition_files(api, name)
    total = format_size(listing.size) + ("" if listing.complete else " or more")
    _say(
        console,
        f"{name}: {format_count(len(listing.files), 'file')}, {total}. The licence is in the competition's rules: "
        f"{listing.rules_url}",
    )
    for file, size in sorted(listing.files, key=lambda entry: -entry[1])[:MAX_LISTED_FILES]:
        _say(console, f"  {file}: {format_size(size)}")
    check_free_space(folder, 2 * listing.size)
    confirm_or_exit(
        f"Download {name} to {folder}? By confirming, you state that you have accepted the competition's rules.",
        yes,
        DOWNLOAD_HINT,
        DOWNLOAD_DECLINED,
    )
    count = fetch_competition(api, listing, folder, lambda what: progress_bar(console, what), console.is_terminal)
    _say(console, f"{folder}: {format_count(count, 'file')}")


def _print_tasks(console: Console) -> None:
    """Print the Decathlon's tasks with their sizes and licence: a table on a terminal, plain columns elsewhere."""
    title = f"Medical Segmentation Decathlon ({LICENCE}, {HOMEPAGE})"
    header = ("name", "download", "holds", "folder in the Decathlon")
    rows = [(task.name, format_size(task.size), task.description, task.folder) for task in TASKS]
    if not console.is_terminal:
        for line in (title, *format_columns(header, rows)):
            _say(console, line)
        return
    table = Table(title=title)
    for column in header:
        table.add_column(column, justify="right" if column == "download" else "left", no_wrap=column == "name")
    for row in rows:
        table.add_row(*row)
    console.print(table)


# DICOM


@exit_on_signal(
    "stopped: the files written so far are complete, but series.csv does not list them yet; to continue, run the same "
    "command again"
)
def dicom_command(folder: Path, output: Path, layout: str, labels: str | None) -> None:
    """Run `maskfold dicom`; `competition.cli.commands_train.dicom` describes the arguments."""
    from competition.dicom.convert import convert_folder

    done = convert_folder(folder, output, layout, labels, say=lambda line: print(line, flush=True))
    images, masks, refused = (len(done.with_status(status)) for status in ("converted", "label", "refused"))
    print(
        f"{images} series converted to images, {masks} to masks, {refused} refused; {output / 'series.csv'} lists all "
        "series"
    )
    if done.segments and masks:
        print("labels: " + ", ".join(f"{value} {label}" for value, label in sorted(done.segments.items())))
    if not images:
        raise MaskfoldError(
            f"No series in {folder} could be converted to an image.",
            f"Read the reasons above or in {output / 'series.csv'}, then correct the files or the option --labels.",
        )


# Exploration

MAX_PER_KIND = 20  # maximum number of findings of one kind on the terminal; findings.csv lists all


@exit_on_signal("stopped: no HTML page was written")
def explore_command(file: Path, overrides: list[str], output: Path | None) -> None:
    """Run `maskfold explore`; `competition.cli.commands_train.explore` describes the arguments.

    If the data have faults, the exit status is 1.
    """
    comp = load_competition(file, [override.removeprefix("competition.") for override in overrides])
    console = Console(highlight=False)

    from competition.explore import explore
    from competition.report.explore import write_exploration
    from competition.report.html import create_figure_folder
    from competition.runs.outputs import check_output

    page = output or Path("reports") / f"{comp.name}.html"
    check_output([page, page.with_suffix("")], [comp])
    create_figure_folder(page)  # reject an invalid name before reading all cases
    exploration = explore(comp, progress_bar(console, "cases read"))
    write_exploration(exploration, page)
    _print_tables(console, exploration)
    _say(console, "")
    _print_findings(console, exploration.faults, "fault")
    _print_findings(console, exploration.remarks, "remark")
    if exploration.snippet:
        _say(
            console,
            f"\nSuggested first experiment (also in {page.with_suffix('')}/suggested.yaml):\n\n{exploration.snippet}",
        )
    _say(
        console,
        f"HTML page: {page} (a single file). Pictures, cases.csv and findings.csv are in {page.with_suffix('')}",
    )
    _say(
        console, f"{format_count(len(exploration.faults), 'fault')}, {format_count(len(exploration.remarks), 'remark')}"
    )
    if exploration.faults:
        sys.exit(1)


def _print_tables(console: Console, exploration: Exploration) -> None:
    from competition.explore import summary

    _print_table(console, exploration.comp.name, ["", "train", "test"], summary.overview_rows(exploration))
    _print_table(console, "truth", ["", "train"], summary.truth_rows(exploration))
    _print_table(console, "classes", summary.class_header(exploration), summary.class_rows(exploration))
    _print_table(console, "foreground against background", summary.CONTRAST_HEADER, summary.contrast_rows(exploration))


def _print_table(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on a terminal, and plain columns elsewhere."""
    if not rows:
        return
    if not console.is_terminal:
        for line in (f"\n{title}", *format_columns(header, rows)):
            _say(console, line)
        return
    table = Table(title=escape(title))
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 or len(header) < 4 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _print_findings(console: Console, findings: Sequence[Finding], severity: str) -> None:
    """Print one line per finding, at most `MAX_PER_KIND` of each kind."""
    counts: Counter[str] = Counter()
    for finding in findings:
        counts[finding.kind] += 1
        if counts[finding.kind] <= MAX_PER_KIND:
            colour = "red" if severity == "fault" else "yellow"
            text = f"{escape(finding.message)} {escape(finding.hint)}"
            console.print(f"[{colour}]{severity} ({finding.kind})[/]: {text}", soft_wrap=True)
    for kind, count in counts.items():
        if count > MAX_PER_KIND:
            _say(
                console,
                f"{severity} ({kind}): {format_count(count - MAX_PER_KIND, 'more finding')}, listed in findings.csv",
            )


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False)
