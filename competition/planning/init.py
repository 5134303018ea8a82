"""Recognise the layout of a folder, and write competition.yaml and a first experiment.yaml.

Both files are checked with the loader that `maskfold cv` uses.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from competition.config.competition import Competition
from competition.config.loading import load_competition
from competition.data.patterns import without_pattern
from competition.errors import MaskfoldError
from competition.explore import Exploration, explore
from competition.io import atomic_write, temporary_folder
from competition.planning.choice import Ask, choose_layout
from competition.planning.find import find_layouts
from competition.planning.folder import scan_folder
from competition.planning.grouping import group_by_folder
from competition.planning.layout import Layout
from competition.planning.layouts.coco import convert_coco, write_ids
from competition.planning.layouts.nested.linked import keep_links
from competition.planning.lines import Line, key_path, to_yaml
from competition.planning.measure import thread_count
from competition.planning.plan import Plan, PlanOptions, make_plan
from competition.planning.replan import write_plan
from competition.text import format_count, is_or_are

EXPERIMENTS = Path("experiments")
COMPETITION_FILE, EXPERIMENT_FILE = "competition.yaml", "experiment.yaml"
MAX_LISTED = 30  # maximum number of ids in train.cases and test.cases; more ids are written into a table
Progress = Callable[[Any, int], Any]


@dataclass(frozen=True, eq=False)
class Initialised:
    """Hold the result of `initialise`: the files, the layout, the exploration and the plan.

    Attributes:
        competition, experiment: paths of the YAML files; experiment is None if no training case could be read.
        layout: the chosen layout.
        exploration: result of reading all data, as in `maskfold explore`.
        plan: the plan in experiment.yaml; None if no training case could be read.
    """

    competition: Path
    experiment: Path | None
    layout: Layout
    exploration: Exploration
    plan: Plan | None = None


@dataclass(frozen=True)
class Options:
    """Hold the options of `maskfold init` that the user sets.

    Attributes:
        name: name of the competition; None means the folder's name.
        layout: number of the chosen layout in the list of layouts that fit, counted from 1; None without `--layout`.
        minutes: time budget of a fold in minutes; None means the plan's default.
        folds: number of folds; None means the plan's default.
        force: whether to replace existing YAML files.
        measures: whether to time candidates on this machine; see `competition.planning.plan`.
        threads: number of threads that the plan assumes for a fold; None means one per core.
    """

    name: str | None = None
    layout: int | None = None
    minutes: float | None = None
    folds: int | None = None
    force: bool = False
    measures: bool = False
    threads: int | None = None


def initialise(
    folder: Path, options: Options, ask: Ask | None, progress: Progress, say: Callable[[str], None] = lambda _: None
) -> Initialised:
    """Write the two YAML files of a folder into `experiments/<name>/` of the working folder.

    Before the files are written, all data are read with the new competition.yaml. Faults in the data do not prevent
    the writing.

    Args:
        folder: the competition's folder.
        options: the user's choices.
        ask: function that asks the user on a terminal; None without a terminal.
        progress: function that shows the progress, as for `competition.explore.explore`.
        say: function that receives a line of text before each timing of a candidate.

    Raises:
        MaskfoldError (exit status 2): the folder is missing, empty or without a known layout, or the files exist
            already. The error is also raised if several layouts fit, and neither an option nor the user chooses one.
    """
    host = scan_folder(folder)
    name = _name(folder, options.name)
    target = EXPERIMENTS / name
    _check_free(target, options.force)
    layout = choose_layout(find_layouts(host), options.layout, ask)
    if "coco" in layout.keys:
        layout = convert_coco(layout, name)
    layout = group_by_folder(keep_links(layout, name), name)
    text = to_yaml(competition_lines(layout, name), _title(layout))
    comp = _load(text)
    exploration = explore(comp, progress)
    threads = options.threads or thread_count()
    measures = options.measures and not exploration.faults  # if the data have faults, a later plan may differ
    plan = _plan(exploration, PlanOptions(options.minutes, options.folds, threads, {}, measures), say)
    target.mkdir(parents=True, exist_ok=True)
    _write(target / COMPETITION_FILE, text)
    experiment = target / EXPERIMENT_FILE if plan is not None else None
    if experiment is not None and plan is not None:
        how = "the data and timed steps on this machine" if plan.rows else "the data"
        _write(experiment, to_yaml(plan.lines, [f"A first experiment on {name}, planned from {how}."]))
        write_plan(experiment, plan)
    return Initialised(target / COMPETITION_FILE, experiment, layout, exploration, plan)


def _plan(exploration: Exploration, options: PlanOptions, say: Callable[[str], None]) -> Plan | None:
    """Return the plan for an explored competition.

    If no step can be timed, for example on a busy machine, plan without timing, and add a warning.
    """
    try:
        return make_plan(exploration, options, say)
    except MaskfoldError as error:
        if not options.measures:
            raise
        plan = make_plan(exploration, replace(options, measures=False), say)
        if plan is not None:
            plan.warnings.append(
                f"{error.message} Therefore, the plan is the standard network on the data's own grid, as with "
                "--no-measure. When no other program uses the machine, plan again: maskfold plan "
                "EXPERIMENT.yaml --write"
            )
        return plan


def experiment_of(folder: Path, name: str | None = None) -> Path:
    """Return the path of the experiment that `initialise` writes for a folder."""
    return EXPERIMENTS / _name(folder, name) / EXPERIMENT_FILE


def _name(folder: Path, given: str | None) -> str:
    """Return the competition's name: the name that the user gave or, without one, the folder's name.

    In the folder's name, `_` replaces all characters that are not letters, digits, `_` or `-`.

    Raises:
        MaskfoldError (exit status 2): the given name begins with `_` or `-` or has other characters, or the folder's
            name has no letters or digits.
    """
    if given is not None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", given):
            raise MaskfoldError(
                f"--name: found {given!r}, expected a letter or digit, followed by letters, digits, _ and -.",
                "Choose another name.",
                status=2,
            )
        return given
    name = re.sub(
        r"[^A-Za-z0-9_-]+", "_", folder.absolute().resolve().name if folder.name in ("", ".", "..") else folder.name
    )
    name = name.strip("_-")
    if not name:
        raise MaskfoldError(
            f"The name of the folder {folder} has no letters or digits, expected at least one.",
            "Set the competition's name with --name NAME.",
            status=2,
        )
    return name


def _check_free(target: Path, force: bool) -> None:
    existing = [file for file in (target / COMPETITION_FILE, target / EXPERIMENT_FILE) if file.exists()]
    if existing and not force:
        raise MaskfoldError(
            f"{existing[0]} exists already, and is not replaced.",
            "Choose another name with --name NAME, or replace the files with maskfold init --force.",
            status=2,
        )


def _load(text: str) -> Competition:
    """Load the competition from the text of its YAML."""
    with temporary_folder(Path(gettempdir()) / "maskfold-init") as scratch:
        file = scratch / COMPETITION_FILE
        file.write_text(text, encoding="utf-8")
        return load_competition(file)


def _write(path: Path, text: str) -> None:
    content = text.encode()
    atomic_write(path, lambda file: file.write(content), len(content))


# competition.yaml


def _title(layout: Layout) -> list[str]:
    return [f"What the host provides, recognised by maskfold init: {layout.name}.", "Correct any wrong values."]


def competition_lines(layout: Layout, name: str) -> list[Line]:
    """Return the keys of competition.yaml with their reasons."""
    keys, reasons = layout.keys, layout.reasons

    def line(path: str, value: Any, reason: str = "") -> Line:
        return Line(key_path(path), value, reason or reasons.get(path, ""))

    def optional(*paths: str) -> list[Line]:
        return [line(path, keys[path]) for path in paths if path in keys]

    lines = [
        line("name", name, "the name of the folder, or --name"),
        line(
            "root",
            _relative(layout.folder.root),
            reasons.get("root", "if the data are elsewhere, add competition.root=/path to each command"),
        ),
        line("dimensions", layout.dimensions),
        line("classes", keys["classes"]),
        *optional("label_values", "labels", "ignore", "background"),
        *([line("instances", True)] if keys.get("instances") else []),
        *_pattern_lines(("train", "images"), layout.images, reasons.get("train.images", "")),
    ]
    if layout.masks is not None:
        lines += _pattern_lines(("train", "masks"), layout.masks, reasons.get("train.masks", ""))
    lines += optional("train.region", "train.missing_masks", "train.threshold", "train.object_numbers", "train.rle")
    if "train.rle" in keys and "columns" in keys:
        lines.append(line("train.columns", keys["columns"], reasons.get("columns", "found by their content")))
    lines += optional("train.rle_format")
    lines += optional("train.cases")
    if layout.listed is not None:
        lines.append(
            line(
                "train.cases",
                _listed(layout, layout.listed, name),
                reasons.get("train.cases", "the images that have a mask"),
            )
        )
    if layout.test is not None:
        lines += _pattern_lines(("test", "images"), layout.test, reasons.get("test.images", ""))
        if layout.test_listed is not None:
            lines.append(line("test.cases", _listed(layout, layout.test_listed, f"{name}-test")))
        lines += optional("test.region")
    if "group" in keys:
        lines.append(line("group", keys["group"]))
    else:
        none = "each id begins differently, and no table has a column of patients, so there are no groups"
        lines.append(line("group", None, reasons.get("group", none)))
    lines += optional("stratum")
    lines += _metric_lines(layout)
    lines += optional("submission.profile", "submission.sample", "submission.columns", "submission.rle")
    return lines


def _pattern_lines(path: tuple[str, ...], patterns: str | dict[str, str], reason: str) -> list[Line]:
    if isinstance(patterns, str):
        return [Line(path, patterns, reason)]
    names = list(patterns)
    return [Line((*path, name), patterns[name], reason if name == names[0] else "") for name in names]


def _metric_lines(layout: Layout) -> list[Line]:
    keys = {key: value for key, value in layout.keys.items() if key.startswith("metric.")}
    if keys:
        return [Line(key_path(key), value, layout.reasons.get(key, "the host's metric")) for key, value in keys.items()]
    metric = "mean_ap" if layout.keys.get("instances") else "dice"
    why = "scores objects" if metric == "mean_ap" else "scores overlap"
    return [
        Line(
            ("metric", "name"),
            metric,
            f"{why}. No file names the host's metric, so look it up on the website of the competition",
        )
    ]


def _listed(layout: Layout, ids: Sequence[str], name: str) -> list[str] | str:
    """Return the value of `train.cases` or `test.cases`: the ids or, if there are many, the path of a table of the ids.

    The table is written beside the data. Its name begins with `name`.
    """
    listed = list(ids)
    return listed if len(listed) <= MAX_LISTED else write_ids(layout.folder, listed, name)


def _relative(root: Path) -> str:
    """Return a path below the working folder as a relative path, and any other path as an absolute path."""
    absolute = Path(os.path.abspath(root))
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def remarks_of(done: Initialised) -> list[str]:
    """Return the output lines `check: …`, which ask the user to check something, and `note: …`, which only inform."""
    remarks = [f"check: {remark}" for remark in done.layout.remarks]
    if not any(key.startswith("metric.") for key in done.layout.keys):
        remarks.append(
            f"check: metric.name is {done.exploration.comp.metric.name}, but no file names the host's "
            "metric, so look it up on the website of the competition"
        )
    unused = [
        path
        for path in without_pattern(done.exploration.comp, done.layout.folder.images)
        if path not in done.layout.explained  # another line names these files
    ]
    if unused:
        remarks.append(
            f"check: {format_count(len(unused), 'image file')} of {len(done.layout.folder.images)} "
            f"{is_or_are(len(unused))} not used, such as {unused[0]}. If these files are training "
            "cases, change train.images; if they are test cases, change test.images"
        )
    return remarks + [f"note: {note}" for note in done.layout.notes]


def counts_of(done: Initialised) -> str:
    """Return a text with the numbers of training cases, test cases and, if `group` is set, groups."""
    train, test = (done.exploration.cases_of(split) for split in ("train", "test"))
    text = f"{format_count(len(train), 'training case')}, {format_count(len(test), 'test case')}"
    if done.exploration.comp.group is not None:
        text += f", {format_count(len({case.group for case in train}), 'group')}"
    return text
