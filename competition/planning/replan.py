"""Plan an existing experiment again, for another budget or machine, and keep the values that the user changed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from competition.config.experiment import Experiment
from competition.config.loading import load_experiment
from competition.config.yaml import parse_yaml, read_yaml
from competition.errors import MaskfoldError
from competition.explore import Exploration
from competition.io import atomic_write
from competition.planning.lines import Line, to_yaml
from competition.planning.measure import thread_count
from competition.planning.plan import PLAN_FILE, Plan, PlanOptions, make_plan, plan_record
from competition.records import read_record, write_json

# The plan does not change these sections: they decide which cases are compared, or the plan never measures them.
FIXED_SECTIONS = ("competition", "seed", "folds", "postprocess", "study")
# The plan replaces these sections as a whole, because their keys depend on each other.
WHOLE_SECTIONS = (
    "patch",
    "model",
    "loss",
    "optimizer",
    "schedule",
    "gate",
    "encoder_weights",
    "augment",
    "postprocess",
)
# The plan sets these keys of `prepare` together. Keys of the list that it does not set are removed from the file.
GRID_KEYS = (
    "spacing",
    "resize",
    "stretch",
    "long_side",
    "crop",
    "boundary",
    "rings",
    "window",
    "percentiles",
    "orientation",
)
NETWORK_SECTIONS = ("encoder_weights", "gate")  # these keys are dropped if the planned network has none of them
FOLDS_REASON = re.compile(  # the planner's words
    r"(your value; the plan would set \w+: )?"
    r"(\d[\d,]* cases? (without groups|in \d[\d,]* groups?; each group stays)|keeps \d[\d,]* groups? of )"
)
TOP_KEY = re.compile(r"^(?P<quote>[\"']?)(?P<key>[A-Za-z_]\w*)(?P=quote)\s*:")


@dataclass(frozen=True, eq=False)
class Replanned:
    """Hold a new plan of an existing experiment.

    Attributes:
        path: the experiment's YAML.
        plan: the plan.
        old: text of the file.
        new: text of the file with the plan's values.
        kept: values of the new plan that are not written, because the user has edited their keys since the last plan.
    """

    path: Path
    plan: Plan
    old: str
    new: str
    kept: dict[str, Any]

    def difference(self) -> list[str]:
        """Return the lines of a unified difference between the old and the new text; empty if nothing changes."""
        lines = difflib.unified_diff(
            self.old.splitlines(), self.new.splitlines(), str(self.path), f"{self.path} (new plan)", lineterm="", n=1
        )
        return list(lines)


def replan(
    path: Path,
    overrides: Sequence[str],
    minutes: float | None,
    trust: Sequence[str],
    read: Callable[[Experiment], Exploration],
    say: Callable[[str], None],
) -> Replanned:
    """Plan an existing experiment again, without changing the values that the user has edited since the last plan.

    The candidates are measured with the user's values. Without a `plan.json` beside the file, the user's values cannot
    be distinguished from planned values, so the plan replaces them too.

    Args:
        path: the experiment's YAML.
        overrides: `key=value` arguments, with which the candidates are measured; they are not written.
        minutes: time budget of a fold in minutes; None means the budget in the file or, without one, the default.
        trust: packages that the `target` keys of the YAML may name, in addition to Maskfold's own list.
        read: function that explores the experiment's competition.
        say: function that receives a line of text before each measurement.

    Raises:
        MaskfoldError: the file is invalid or sets `patch.slices` or `first_stage` (exit status 2), no training case
            can be read, or nothing can be measured.
    """
    document, old = read_yaml(path), path.read_text(encoding="utf-8-sig")
    last = _last_values(path)
    own = flatten(document.tree)
    fixed = set(FIXED_SECTIONS)
    if _is_planned("postprocess", own, last):
        # It may name classes that competition.yaml no longer has, and the new plan has its own.
        fixed.remove("postprocess")
        overrides = ["postprocess.number=null", *overrides]
    if _is_planned("folds", own, last):
        # The plan gives the same folds as before, unless competition.yaml now has other groups or strata.
        fixed.remove("folds")
    exp = load_experiment(path, overrides, trust)
    if exp.patch.slices is not None:
        raise MaskfoldError(
            f"{path} sets patch.slices, but 2D networks on slices of volumes cannot be planned.",
            "To plan a 3D network, remove patch.slices. Otherwise, train the experiment without a plan.",
            status=2,
        )
    if exp.first_stage is not None:
        raise MaskfoldError(
            f"{path} sets first_stage, but networks that get the predictions of another run as input cannot "
            "be planned.",
            "Remove first_stage, plan the experiment, and then add first_stage again.",
            status=2,
        )
    edited = _edited_keys(own, last) - {("training", "budget_minutes")}
    edited = {key for key in edited if key[0] not in fixed}
    minutes = minutes or exp.training.budget_minutes
    written = {path for key in edited for path in _planned_with(key)}
    pins: dict[tuple[str, ...], Any] = {key: _value_at(document.tree, key) for key in written}
    pins |= {tuple(word.partition("=")[0].split(".")): _override(exp, word) for word in overrides if _is_pin(word)}
    pins |= {("run", key): getattr(exp.run, key) for key in ("accelerator", "workers")}
    threads = exp.run.threads or max(1, thread_count() // exp.run.parallel_folds)
    options = PlanOptions(minutes, exp.folds.k, threads, pins)
    plan = make_plan(read(exp), options, say)
    if plan is None:
        raise MaskfoldError(
            f"None of the training cases of {exp.competition.name} can be read.",
            "To see why, run maskfold explore on the YAML of the competition.",
        )
    planned = [line for line in plan.lines if line.path[0] not in fixed]
    kept = {".".join(line.path): line.value for line in plan.lines if line.path in written}
    lines = [Line(line.path, pins[line.path] if line.path in written else line.value, line.reason) for line in planned]
    new = merge(old, document.tree, lines, {key[:2] for key in edited})
    if "folds" in fixed:
        new = _correct_folds_reason(new, next(line for line in plan.lines if line.path == ("folds",)))
    return Replanned(path, plan, old, new, kept)


def write(done: Replanned) -> Path:
    """Write the new plan and `plan.json`; return the path of the copy of the old file.

    Raises:
        MaskfoldError: the new file would be invalid; nothing is written.
    """
    backup = done.path.with_name(done.path.name + ".bak")
    trial = done.path.with_name(f".{done.path.stem}.plan.yaml")
    try:
        _write(trial, done.new)
        load_experiment(trial, (), None)
    finally:
        trial.unlink(missing_ok=True)
    _write(backup, done.old)
    _write(done.path, done.new)
    write_plan(done.path, done.plan)
    return backup


def write_plan(path: Path, plan: Plan) -> None:
    """Write `plan.json` beside an experiment."""
    write_json(plan_file(path), plan_record(plan))


def plan_file(path: Path) -> Path:
    """Return the path of an experiment's plan: plan.json beside experiment.yaml, NAME.plan.json beside NAME.yaml."""
    return path.with_name(PLAN_FILE if path.stem == "experiment" else f"{path.stem}.{PLAN_FILE}")


def _write(path: Path, text: str) -> None:
    content = text.encode()
    atomic_write(path, lambda file: file.write(content), len(content))


def _last_values(path: Path) -> dict[tuple[str, ...], Any]:
    """Return the values of the last plan by key; an empty dictionary if there was no plan."""
    try:
        values = read_record(plan_file(path), "Delete the file.").get("values", {})
    except FileNotFoundError:
        return {}
    tree: dict[str, Any] = {}
    for key, value in values.items():
        place = tree
        *above, name = key.split(".")
        for part in above:
            place = place.setdefault(part, {})
        place[name] = value
    return flatten(tree)


def flatten(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return the values of nested mappings, by their path of keys."""
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    leaves: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        leaves |= flatten(value, (*path, str(key)))
    return leaves


def _is_planned(section: str, own: dict[tuple[str, ...], Any], last: dict[tuple[str, ...], Any]) -> bool:
    """Return whether a file has a section, and the section has the same values as in the last plan.

    Args:
        section: the top-level key of the section.
        own: values of the file by key.
        last: values of the last plan by key.
    """
    written = {key: value for key, value in own.items() if key[0] == section}
    return bool(written) and written == {key: value for key, value in last.items() if key[0] == section}


def _edited_keys(own: dict[tuple[str, ...], Any], last: dict[tuple[str, ...], Any]) -> set[tuple[str, ...]]:
    """Return the keys whose values the user has changed since the last plan, or has added to a planned section.

    Without a last plan, the result is empty.

    Args:
        own: values of the file by key.
        last: values of the last plan by key.
    """
    planned = {key[0] for key in last} | set(NETWORK_SECTIONS if last else ())
    return {key for key, value in own.items() if (value != last[key] if key in last else key[0] in planned)}


def _planned_with(key: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the keys that must change together with a key, including the key itself.

    If the user has changed one of them, such as `model.target`, the plan changes none of them.
    """
    if key[0] == "model":
        return [("model", "target"), ("model", "args")]
    if key[0] in NETWORK_SECTIONS:  # the user's value fits the network of the file
        return [("model", "target"), ("model", "args"), key[:1]]
    return [key[:1] if key[0] in (*WHOLE_SECTIONS, "inference") else key[:2]]


def _value_at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _is_pin(word: str) -> bool:
    return word.partition("=")[0].partition(".")[0] in ("prepare", "patch", "augment", "model", "loss", "training")


def _override(exp: Experiment, word: str) -> Any:
    value: Any = exp.model_dump(by_alias=True, mode="json")
    return _value_at(value, tuple(word.partition("=")[0].split(".")))


# Text


def merge(text: str, tree: dict[str, Any], lines: Sequence[Line], edited: Collection[tuple[str, ...]] = ()) -> str:
    """Replace sections in the text of an experiment by the plan's sections, and return the new text.

    Sections that the plan does not contain keep their text and comments, except `NETWORK_SECTIONS`, which are removed
    unless the user has edited them. `WHOLE_SECTIONS` are replaced as a whole. In other sections, keys that the plan
    does not set keep their values. An exception is `prepare`, from which `GRID_KEYS` are removed unless the user has
    edited them.

    Args:
        text: text of the file.
        tree: the values in the file.
        lines: the plan.
        edited: the first two parts of the keys that the user has edited.
    """
    sections: dict[str, list[Line]] = {}
    for line in lines:
        sections.setdefault(line.path[0], []).append(line)
    for name, own in sections.items():
        if name in WHOLE_SECTIONS or not isinstance(tree.get(name), dict):
            continue
        if any(len(line.path) == 1 for line in own):  # a section on one line
            value = {**{key: item for key, item in tree[name].items() if key not in own[0].value}, **own[0].value}
            sections[name] = [Line(own[0].path, value, own[0].reason)]
            continue
        planned = {line.path[1] for line in own}
        sections[name] = own + [
            Line((name, key), item)
            for key, item in tree[name].items()
            if key not in planned and not (name == "prepare" and key in GRID_KEYS and (name, key) not in edited)
        ]
    blocks = split_blocks(text)
    result, done = [], set()
    for key, block in blocks:
        if key not in sections:
            if key not in NETWORK_SECTIONS or key in {path[0] for path in edited}:
                result.append(block)
        elif key not in done:
            result.append(to_yaml(sections[key], []))
            done.add(key)
    new = [to_yaml(own, []) for key, own in sections.items() if key not in done]
    return "".join([*result, *new])


def _correct_folds_reason(text: str, planned: Line) -> str:
    """Replace the comment beside `folds` if the plan wrote it, but the user has changed the value since then.

    The comment of the last plan may no longer be true. For example, it says that there are no groups, although the user
    has set groups since then. The new comment has the reason of the new plan. Comments that the user wrote stay.

    Args:
        text: text of the file.
        planned: the line of `folds` in the new plan.
    """
    blocks = []
    for key, block in split_blocks(text):
        rows = block.splitlines()
        comment = " ".join(row.partition("#")[2].strip() for row in rows if "#" in row)
        is_one_line = sum(not row.startswith("#") for row in rows) == 1
        if key == "folds" and is_one_line and FOLDS_REASON.match(comment):
            value, scheme = parse_yaml(block).tree["folds"], planned.value["scheme"]
            reason = planned.reason
            if value.get("scheme") != scheme:
                reason = f"your value; the plan would set {scheme}: {reason}"
            block = to_yaml([Line(("folds",), value, reason)], [])
        blocks.append(block)
    return "".join(blocks)


def split_blocks(text: str) -> list[tuple[str, str]]:
    """Split YAML into its top-level keys, each with its lines and the comments directly above it.

    Comments at the beginning of the file belong to no key; they form a first block with an empty key.
    """
    blocks: list[tuple[str, list[str]]] = [("", [])]
    for line in text.splitlines(keepends=True):
        found = TOP_KEY.match(line)
        if found is None:
            blocks[-1][1].append(line)
            continue
        above: list[str] = []
        if blocks[-1][0]:  # comments above a key belong to the key; comments at the beginning are the file's title
            while blocks[-1][1] and blocks[-1][1][-1].startswith("#"):
                above.insert(0, blocks[-1][1].pop())
        blocks.append((found["key"], [*above, line]))
    if blocks[-1][1] and not blocks[-1][1][-1].endswith("\n"):
        blocks[-1][1][-1] += "\n"
    return [(key, "".join(lines)) for key, lines in blocks if lines]
