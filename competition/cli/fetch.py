"""`maskfold fetch`: say what it is, ask, download, say what to type next."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from competition.cli.ask import ask
from competition.cli.progress import watcher
from competition.cli.words import stoppable
from competition.data.fetch.decathlon import HOME, LICENCE, TASKS, find_task, source_of
from competition.data.fetch.kaggle_client import PREFIX, competition_name, connect, fetch_competition, list_files
from competition.data.fetch.next_command import next_lines
from competition.data.fetch.place import check_room, fetch_archive, is_there
from competition.data.fetch.size import readable

CURE, LEFT = "Add --yes to download.", "nothing was downloaded"
LARGEST = 10  # files of a competition that are listed


@stoppable("stopped: the same command goes on with what was downloaded")
def fetch_data(name: str, output: Path, yes: bool) -> None:
    """Run the command; see `competition.cli.main.fetch`."""
    console = Console(highlight=False)
    if name == "list":
        _print_tasks(console)
        return
    kaggle = name.startswith(PREFIX)
    short = competition_name(name) if kaggle else find_task(name).name
    folder = output / short
    if is_there(folder):
        _say(console, f"{folder} is there already; nothing was downloaded")
    elif kaggle:
        _from_kaggle(console, short, folder, yes)
    else:
        _from_decathlon(console, short, folder, yes)
    for line in next_lines(short, folder):
        _say(console, line)


def _from_decathlon(console: Console, name: str, folder: Path, yes: bool) -> None:
    task = find_task(name)
    _say(console, f"{task.folder} ({task.holds}): about {readable(task.size)}, licence {LICENCE}, {HOME}")
    check_room(folder, 2 * task.size)
    ask(f"Download {readable(task.size)} to {folder}?", yes, CURE, LEFT)
    source = source_of(task)
    count = fetch_archive(source, folder, lambda what: watcher(console, what), lambda line: _say(console, line))
    _say(console, f"{folder}: {_files(count)}")


def _from_kaggle(console: Console, name: str, folder: Path, yes: bool) -> None:
    api = connect()
    listing = list_files(api, name)
    more = "" if listing.whole else " or more"
    _say(
        console,
        f"{name}: {_files(len(listing.files))}, {readable(listing.size)}{more}; licence: the rules at {listing.rules}",
    )
    for file, size in sorted(listing.files, key=lambda one: -one[1])[:LARGEST]:
        _say(console, f"  {file}: {readable(size)}")
    check_room(folder, 2 * listing.size)
    ask(f"Download it to {folder}, having accepted the rules?", yes, CURE, LEFT)
    count = fetch_competition(api, listing, folder, lambda what: watcher(console, what), console.is_terminal)
    _say(console, f"{folder}: {_files(count)}")


def _print_tasks(console: Console) -> None:
    """The Decathlon's tasks, their sizes and licence: a table on a terminal; elsewhere plain columns, a line a task."""
    title = f"Medical Segmentation Decathlon ({LICENCE}, {HOME})"
    header = ("name", "download", "holds", "folder in the Decathlon")
    rows = [(task.name, readable(task.size), task.holds, task.folder) for task in TASKS]
    if not console.is_terminal:
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        _say(console, title)
        for row in (header, *rows):
            _say(console, "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(title=title)
    for column in header:
        table.add_column(column, justify="right" if column == "download" else "left", no_wrap=column == "name")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False)
