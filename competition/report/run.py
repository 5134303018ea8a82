"""Write the HTML report of a run, and its section with the YAML and the changes since the previous best run."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from markupsafe import Markup

from competition.config.metric import Direction
from competition.context import Context
from competition.errors import MaskfoldError
from competition.metrics.bootstrap import ScoreGain, paired_gain
from competition.postprocessing.tuning import load_tuning
from competition.records import read_metrics_lines
from competition.report.calibration import calibration_section
from competition.report.folds import folds_section
from competition.report.html import NO_SCRIPT, output_lock, render, staged_figures, write_page
from competition.report.learning import cases_section, learning_section
from competition.report.methods import methods_section
from competition.report.results import RunResults
from competition.report.scores import score_headline, scores_section, sizes_section
from competition.report.viewer import viewer_cases, viewer_script, viewer_section
from competition.runs.fold import RESULT_FILE, mixed_environments
from competition.runs.imported import describe_import, is_imported
from competition.runs.outputs import check_output, competitions_of
from competition.runs.run import FOLDS_FILE, Run, load_run
from competition.runs.summary import SUMMARY_FILE, read_run_scores, read_summary, run_scores
from competition.text import format_amount, format_count, has_or_have

if TYPE_CHECKING:
    import pandas as pd

TEMPLATE = "run.html.j2"
REPORT_NAME = "report.html"  # name of the page in the run's folder
OLD_FIGURES = r"case_\d+_(best|median|worst)\.png"
# Errors that reading another run may raise, because it may be still in training, or be made by another version.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError)


def write_report(run: Run, output: Path, context: Context = Context()) -> Path:
    """Write the report of a run as one HTML page, a single file that contains its figures.

    The figures are also written as PNG files, into a folder with the name of the page.

    Args:
        run: a run with any number of finished folds, e.g. from `competition.runs.find.find_run`.
        output: path of the page, which ends in `.html`.
        context: context whose log receives progress messages.

    Returns:
        The path of the page.

    Raises:
        MaskfoldError: an image or a prediction is missing or damaged; the page cannot be written; or the page would be
            in the run's folder and another process works there.
    """
    if output.resolve() != (run.folder / REPORT_NAME).resolve():
        check_output([output, output.with_suffix("")], competitions_of([run]))
    with output_lock(run.folder, output), staged_figures(output, OLD_FIGURES) as folder:
        return _write_report(run, output, folder, context)


def _write_report(run: Run, output: Path, folder: Path, context: Context) -> Path:
    results, oof = RunResults.load(run), run.oof()
    sections = {
        "scores": ("Scores", scores_section(results, folder)),
        "learning": ("Learning curves", learning_section(run, folder)),
    }
    shown: list[str] = []
    if results.table is not None:
        shown = viewer_cases(results, oof)
        sections["folds"] = ("Folds", folds_section(results, folder))
        context.say("drawing the best, median and worst cases")
        sections["cases"] = ("Cases", cases_section(results, oof, folder, shown))
        if shown:
            sections["viewer"] = ("Viewer", viewer_section(results, oof, shown, context))
        sections["calibration"] = ("Calibration", calibration_section(results, oof, folder, context))
        sections["sizes"] = ("Size", sizes_section(results, oof, folder, context))
    sections["methods"] = ("Methods", methods_section(results))
    sections["experiment"] = ("Experiment", experiment_section(results))
    script = viewer_script() if "viewer" in sections else NO_SCRIPT
    return write_page(f"{run.name} · {run.folder.name}", _head(results), sections, output, script)


def _head(results: RunResults) -> Markup:
    """Return the top of the page: its title, the score, and facts about the run."""
    run, members = results.run, results.members
    comp, exp = run.exp.competition, run.exp
    end = get_end_time(run.folder)
    predicted = 0 if results.table is None else results.table["id"].nunique()
    facts = {
        "competition": comp.name,
        "metric": f"{comp.metric.name}, average {comp.metric.average}",
        "cases": f"{len(run.cases)} ({comp.dimensions}D), {predicted} out of fold",
        "classes": f"{len(comp.classes)} {comp.labels}" + (", scored by object" if comp.instances else ""),
        "network": exp.model.target.rpartition(".")[2],
        "seeds": ", ".join(map(str, exp.seeds)),
        "trained": f"{format_amount(sum(member.minutes for member in members), 'minute', '.0f')} for all folds",
        "on": "; ".join(dict.fromkeys(f"{m.device}, {m.precision}, torch {m.torch}" for m in members)) or "–",
        "peak memory": f"{max((member.peak_gib for member in members), default=0.0):.1f} GiB",
    }
    if is_imported(exp):
        for key in ("network", "seeds", "trained", "on", "peak memory"):
            del facts[key]
        facts["predictions"] = describe_import(run)
    return render(
        TEMPLATE,
        "head",
        name=run.name,
        hash=run.folder.name,
        finished=f"{datetime.fromtimestamp(end, UTC):%d %B %Y, %H:%M} UTC" if math.isfinite(end) else "",
        headline=score_headline(results),
        missing=_missing_folds(results),
        remarks=mixed_environments(members),
        facts=facts,
    )


def _missing_folds(results: RunResults) -> str:
    """Return sentences about folds and seeds without a result; an empty text if there are none."""
    if results.table is None:
        return ""
    numbers, seeds = results.run.fold_numbers(), len(results.run.exp.seeds)
    done = Counter(member.fold for member in results.members)
    missing = [fold for fold in numbers if not done[fold]]
    partly = [fold for fold in numbers if 0 < done[fold] < seeds]
    sentences = []
    if missing:
        sentences.append(
            f"{len(missing)} of {format_count(len(numbers), 'fold')} {has_or_have(len(missing))} no result (fold "
            f"numbers: {', '.join(map(str, missing))}), so all scores are those of the other folds."
        )
    if partly:
        sentences.append(
            f"Only some seeds have a result in the folds with these numbers: {', '.join(map(str, partly))}."
        )
    return " ".join(sentences)


# The section with the YAML, and the previous best run

LINE_CLASSES = {"+": "add", "-": "cut", "@": "at"}


@dataclass(frozen=True)
class PreviousBest:
    """Describe the best earlier run of the same competition.

    Attributes:
        folder: folder of the run.
        score: score of the masks that this run would submit, see `competition.runs.summary.run_scores`.
        cases: number of cases with an out-of-fold prediction.
        note: text on whether the score includes tuned post-processing; may be empty.
    """

    folder: Path
    score: float
    cases: int
    note: str = ""

    @property
    def name(self) -> str:
        """The name of the run with its hash, e.g. `hippocampus-unet3d/2cb50ff146c0`."""
        return f"{self.folder.parent.name}/{self.folder.name}"


def experiment_section(results: RunResults) -> Markup:
    """Return the section with the YAML of the run, and its changes since the previous best run."""
    run = results.run
    text = (run.folder / "experiment.yaml").read_text(encoding="utf-8", errors="replace")
    best, gain, diff = find_previous_best(run), None, []
    if best is not None:
        gain = _gain_text(results, best)
        best_text = (best.folder / "experiment.yaml").read_text(encoding="utf-8", errors="replace")
        names = best.name, run.full_name
        diff = list(difflib.unified_diff(yaml_key_lines(best_text), yaml_key_lines(text), *names, n=2, lineterm=""))
    return render(
        TEMPLATE,
        "experiment",
        competition=run.exp.competition.name,
        best=gain,
        diff=[(_line_class(index, line), line) for index, line in enumerate(diff)],
        yaml=text,
    )


def _gain_text(results: RunResults, best: PreviousBest) -> str:
    note = f" ({best.note})" if best.note else ""
    text = f"{best.name} scored {best.score:.4f} on {format_count(best.cases, 'case')}{note}."
    if results.table is None or math.isnan(results.score().value):
        return text
    gain, cases, is_processed = gain_over_run(results, best.folder)
    footing = "with post-processing" if is_processed else "without post-processing"
    if gain is None:
        return f"{text} The two runs cannot be compared case by case. This run scored {results.counted().value:.4f}."
    direction = results.metric.direction
    difference = gain.as_difference(direction)
    ends = "" if math.isnan(gain.low) else f" (95 % {difference.low:+.4f} to {difference.high:+.4f}, paired bootstrap)"
    note = "; lower scores are better" if direction is Direction.LOWER else ""
    return (
        f"{text} On the {format_count(cases, 'case')} that both runs predicted, the score of this run minus the score "
        f"of {best.name} is {difference.value:+.4f}{ends}{note}; both scores are {footing}."
    )


def gain_over_run(results: RunResults, folder: Path) -> tuple[ScoreGain | None, int, bool]:
    """Return the gain of a run's score over the score of another run, on the cases that both have predicted.

    If both runs have a stored result of post-processing, scores with post-processing are compared: if steps were tuned,
    each fold has the steps that were tuned on the other folds. Otherwise, scores without post-processing are compared.

    Args:
        results: results of the run.
        folder: folder of the other run.

    Returns:
        The gain, or None if the runs cannot be compared; the number of common cases; and whether scores with
        post-processing were compared.
    """
    exp, tuned = results.run.exp, _tuned_tables(results.run, folder)
    try:
        rows, other_rows = tuned or (results.rows(), read_run_scores(folder))
        both = set(rows["id"]) & set(other_rows["id"])
        if not both or set(rows["class"]) != set(other_rows["class"]):
            return None, 0, False
        tables = [table[table["id"].isin(both)] for table in (other_rows, rows)]
        groups = results.run.groups()
        gain = paired_gain(tables[0], tables[1], exp.competition.metric, seed=exp.seeds[0], groups=groups)
        return gain, len(both), tuned is not None
    except (OSError, ValueError, KeyError, MaskfoldError):
        return None, 0, False


def _tuned_tables(run: Run, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Return the tables of the scores with post-processing of a run and of another run in `folder`.

    If one of the runs has no stored result of post-processing, return None.
    """
    try:
        other = load_run(folder, None)  # no class of the run is built
        tables = [load_tuning(each) if each.exp.postprocess.is_scored else None for each in (run, other)]
    except (OSError, ValueError, KeyError, MaskfoldError):
        return None
    return None if tables[0] is None or tables[1] is None else (tables[0].rows, tables[1].rows)


def find_previous_best(run: Run) -> PreviousBest | None:
    """Return the run with the best score among the finished runs that ended before `run`; None if there is none.

    The candidates are the runs that are in the same folder of runs, and have the same competition and the same metric
    with the same settings.
    """
    end = get_end_time(run.folder)
    candidates = []
    for path in sorted(run.folder.resolve().parent.parent.glob(f"*/*/{SUMMARY_FILE}")):
        folder = path.parent
        if folder == run.folder.resolve():
            continue
        try:
            summary = read_summary(folder)
            plain = yaml.safe_load((folder / "experiment.yaml").read_text(encoding="utf-8"))
            comp = run.exp.competition
            if (
                (plain["competition"]["name"], summary["metric"]) == (comp.name, comp.metric.name)
                and summary["score"] is not None
                and _complete(folder, plain, summary)
                and get_end_time(folder) < end
                and (other := load_run(folder, None)).exp.competition.metric == comp.metric  # no class is built
            ):
                score = run_scores(other, summary)
                assert score is not None  # the summary contains a score
                candidates.append(PreviousBest(folder, score.value, int(summary["cases"]), score.note))
        except (*UNREADABLE, MaskfoldError):
            continue
    direction = run.exp.competition.metric.direction
    return max(candidates, key=lambda candidate: direction.rank(candidate.score), default=None)


def get_end_time(folder: Path) -> float:
    """Return the time at which a run ended, in seconds since 1970; infinity if no fold is finished.

    The time is the latest one in the `metrics.jsonl` of the finished folds, so that a copy of the folder has the same
    time. If a fold has no such time, it is the time at which the fold's `result.json` was last changed.
    """
    times = [
        _last_time(result.parent / "metrics.jsonl") or result.stat().st_mtime
        for result in folder.glob(f"*/{RESULT_FILE}")
    ]
    return max(times, default=float("inf"))


def _last_time(path: Path) -> float | None:
    lines = read_metrics_lines(path)
    return lines[-1].time or None if lines else None


def _complete(folder: Path, plain: dict[str, Any], summary: dict[str, Any]) -> bool:
    """Return whether all folds and seeds of a run are finished.

    Args:
        folder: folder of the run.
        plain: content of its `experiment.yaml`.
        summary: content of its `summary.json`.
    """
    import pandas as pd

    selected = plain["folds"].get("run")
    folds = pd.read_csv(folder / FOLDS_FILE)["fold"]
    if selected == "full":
        numbers = {-1}
    else:
        numbers = set(selected) if selected is not None else set(folds[folds >= 0].tolist())
    seeds = len(plain["seed"]) if isinstance(plain["seed"], list) else 1
    done = {(result["fold"], result["seed"]) for result in summary["folds"]}
    return {(fold, seed) for fold in numbers for seed in range(seeds)} <= done


def yaml_key_lines(text: str) -> list[str]:
    """Return the lines of a YAML text with one line for each key, so that a diff shows only changes of values."""
    return list(_key_lines(yaml.safe_load(text), ""))


def _key_lines(plain: dict[str, Any], indent: str) -> Iterator[str]:
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from _key_lines(value, indent + "  ")
        else:
            dumped = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True)
            dumped = dumped.strip().removesuffix("...").strip()  # PyYAML appends three dots to a scalar
            yield f"{indent}{key}: {dumped}"


def _line_class(index: int, line: str) -> str:
    """Return the CSS class of a line of a unified diff, which sets its colour.

    The first two lines, which contain the names of the files, have no class.
    """
    return "" if index < 2 else LINE_CLASSES.get(line[0], "")
