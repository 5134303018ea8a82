"""Search for the best post-processing steps of each class on out-of-fold predictions, and estimate their gain.

If the gain is measured on the cases on which the steps were tuned, it is too optimistic. So for each fold, the search
is repeated on the other folds, and the steps that it finds are scored on the fold that was left out. The resulting
score over all folds is called the nested score.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from competition.config.competition import MetricConfig
from competition.config.experiment import Experiment
from competition.config.postprocess import STEPS, PostprocessConfig, Step, StepConfig
from competition.context import Context
from competition.errors import MaskfoldError
from competition.io import sha256_of_file
from competition.metrics.bootstrap import ScoreGain, cv_score, paired_gain
from competition.metrics.overlap import score_from_counts, sum_columns
from competition.metrics.scoring import read_scores
from competition.postprocessing.evaluation import OofScores, Steps
from competition.postprocessing.steps import SearchContext, TruthSizes
from competition.records import write_json
from competition.runs.run import Run
from competition.runs.summary import TUNING_FILE, TUNING_SCORES_FILE, read_tuning_record, tuning_digest, tuning_key
from competition.tables import write_table

if TYPE_CHECKING:
    import pandas as pd

SINGLE_FOLD_PARTS = 5  # a single fold's cases are split into this many parts
MAX_SWEEPS = 5  # maximum number of searches of each slot
MIN_GAIN = 0.001  # tuned steps are used only if they improve the nested score by at least this much


# Search


@dataclass(frozen=True)
class TuningResult:
    """Hold the result of tuning post-processing.

    Attributes:
        settings: the post-processing to use: with the tuned steps if `kept`, otherwise with the steps of the YAML.
        best_steps: best steps of each class on all cases, even if they are not used.
        before: score of the steps of the YAML.
        after: score of the tuned steps on the cases on which they were tuned; too optimistic.
        nested: score over all cases, where each fold gets the steps that were tuned on the other folds.
        gain: improvement of `nested` over `before`, with its 95 % interval.
        kept: whether the tuned steps are used. This requires a gain of at least `MIN_GAIN` whose interval lies above 0.
        rows: table with one row per case and class: the scores from which `nested` was computed if `kept` is True;
            otherwise the scores from which `before` was computed.
        presence_gain: improvement of the nested score if the search also includes the step `gate`; None without a
            presence head. The tuned steps contain `gate` only if this gain is at least `MIN_GAIN` and its interval lies
            above 0.
        part_steps: for each part of the cases (usually a fold), the steps of each class that were tuned without this
            part. Empty if there is only one part, or if an older version stored the result.
    """

    settings: PostprocessConfig
    best_steps: dict[str, Steps]
    before: float
    after: float
    nested: float
    gain: ScoreGain
    kept: bool
    rows: pd.DataFrame
    presence_gain: ScoreGain | None = None
    part_steps: dict[int, dict[str, Steps]] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The expected score of a submission: `nested` if the tuned steps are used, else `before`."""
        return self.nested if self.kept else self.before

    def nested_settings(self, part: int) -> PostprocessConfig:
        """Return the post-processing that was tuned without one part of the cases.

        If the tuned steps are not used, return `settings`.

        Args:
            part: number of the part, see `tuning_parts`.
        """
        if not self.kept:
            return self.settings
        steps = {name: list(found) for name, found in self.part_steps[part].items()}
        return self.settings.model_copy(update={"steps": steps})

    def report_lines(self) -> list[str]:
        """Return the result as lines for the user."""
        if not self.settings.tune:
            return [own_steps_line(self.before)]

        def interval(gain: ScoreGain) -> str:
            if math.isnan(gain.low):
                return "no interval, because there are too few cases or groups"
            return f"95 % interval {gain.low:+.4f} to {gain.high:+.4f}"

        head = (
            f"post-processing: score {self.before:.4f} before tuning, {self.after:.4f} after tuning on the same cases; "
            f"nested score {self.nested:.4f} (gain {self.gain.value:+.4f}, {interval(self.gain)})"
        )
        steps = [f"  {cls}: {', '.join(map(str, steps)) or 'no step'}" for cls, steps in self.best_steps.items()]
        gain = self.presence_gain
        if gain is not None:
            steps.insert(
                0,
                f"step gate: if the search includes it, the nested score improves by {gain.value:+.4f} "
                f"({interval(gain)}): {'used' if is_significant(gain) else 'not used'}",
            )
        if self.kept:
            return [head, *steps]
        reason = f"the gain of the nested score is below {MIN_GAIN} or within the noise"
        if not self.part_steps and self.nested == self.before:  # `tuning_parts` made a single part
            reason = (
                f"all cases are in one fold and form fewer than {SINGLE_FOLD_PARTS} groups, so there are no other "
                "cases on which the steps could be tested"
            )
        return [head, f"the tuned steps are not used, because {reason}. The search found these steps:", *steps]


def tune_postprocessing(
    evaluation: OofScores, seed: int, groups: dict[str, str] | None, context: Context = Context()
) -> TuningResult:
    """Search for the best steps of each class by coordinate descent, and estimate their gain.

    The first search uses all cases. Then, for each part of the cases (usually a fold), another search leaves out this
    part.

    All searches share the scores: each list of steps is scored once on every case, and each search averages the scores
    of its own cases.

    Args:
        evaluation: object that scores the out-of-fold predictions; call this function inside its `with` block.
        seed: seed of the bootstrap.
        groups: group of each case, by case id. The bootstrap for the intervals draws whole groups. None to draw single
            cases.
        context: context whose log receives progress messages.
    """
    exp, comp = evaluation.ensemble.runs[0].exp, evaluation.ensemble.comp
    own = [exp.postprocess.steps_for(name) for name in comp.classes]
    part_of = tuning_parts(evaluation.rows, evaluation.fold_of, seed)
    numbers = sorted(set(part_of.values()))
    parts = [None, *numbers] if len(numbers) > 1 else [None]
    best = _CoordinateDescent(evaluation, own, parts, part_of).run(context)
    before = evaluation.score_table(lambda _, index: own[index])

    def nested_table(best: dict[int | None, list[Steps]]) -> pd.DataFrame:
        if len(numbers) == 1:
            return before  # there are no other cases to tune on
        return evaluation.score_table(lambda case, index: best[part_of[case]][index])

    nested, presence_gain = nested_table(best), None
    if evaluation.oof.has_presence:
        with_presence = _CoordinateDescent(evaluation, own, parts, part_of, presence=True).run(context)
        presence_gain = paired_gain(nested, nested_table(with_presence), comp.metric, seed=seed, groups=groups)
        if is_significant(presence_gain):
            best, nested = with_presence, nested_table(with_presence)
    after = evaluation.score_table(lambda _, index: best[None][index])
    gain = paired_gain(before, nested, comp.metric, seed=seed, groups=groups)
    kept = is_significant(gain)
    best_steps = dict(zip(comp.classes, best[None], strict=True))
    settings = exp.postprocess.model_copy(
        update={"steps": {name: list(steps) for name, steps in best_steps.items()}} if kept else {}
    )
    return TuningResult(
        settings,
        best_steps,
        cv_score(before, comp.metric),
        cv_score(after, comp.metric),
        cv_score(nested, comp.metric),
        gain,
        kept,
        nested if kept else before,
        presence_gain,
        {
            part: dict(zip(comp.classes, steps, strict=True))
            for part, steps in best.items()
            if part is not None and len(numbers) > 1
        },
    )


def score_own_steps(evaluation: OofScores) -> TuningResult:
    """Score the post-processing of the YAML without tuning; `before`, `after` and `nested` are then this score.

    Args:
        evaluation: object that scores the out-of-fold predictions; call this function inside its `with` block.
    """
    exp, comp = evaluation.ensemble.runs[0].exp, evaluation.ensemble.comp
    own = [exp.postprocess.steps_for(name) for name in comp.classes]
    evaluation.score({index: (steps,) for index, steps in enumerate(own)})
    rows = evaluation.score_table(lambda _, index: own[index])
    score, steps = cv_score(rows, comp.metric), dict(zip(comp.classes, own, strict=True))
    return TuningResult(exp.postprocess, steps, score, score, score, ScoreGain(0.0, math.nan, math.nan), False, rows)


def own_steps_line(score: float) -> str:
    """Return the line for the user with the score of the YAML's post-processing."""
    return f"with the post-processing of the YAML: score {score:.4f}"


def is_significant(gain: ScoreGain) -> bool:
    """Return whether a gain is at least `MIN_GAIN` and its 95 % interval lies above 0."""
    return bool(gain.value >= MIN_GAIN and gain.low > 0)


def tuning_parts(rows: Mapping[str, Any], fold_of: Mapping[str, int], seed: int) -> dict[str, int]:
    """Return the number of the part to which each case belongs; nested tuning leaves out one part at a time.

    Usually, the parts are the folds. If only one fold was predicted (a holdout, or `folds.run: [0]`), its cases are
    split into `SINGLE_FOLD_PARTS` parts, and cases of the same group stay together. If there are fewer groups than
    parts, all cases form one part.

    Args:
        rows: rows of the case table by id; only the column group is read.
        fold_of: number of the fold that predicted each case, by id.
        seed: seed of the split.
    """
    if len({fold_of[case] for case in rows}) > 1:
        return {case: fold_of[case] for case in rows}
    names = sorted({str(row.group) for row in rows.values()})
    if len(names) < SINGLE_FOLD_PARTS:
        return dict.fromkeys(rows, 0)
    order = np.random.default_rng(seed).permutation(len(names))
    part = {names[index]: position % SINGLE_FOLD_PARTS for position, index in enumerate(order)}
    return {case: part[str(row.group)] for case, row in rows.items()}


class _CoordinateDescent:
    """Search for the best steps by coordinate descent, on several subsets of the cases at the same time.

    A subset consists of all cases except one part; the part None stands for the search on all cases. All searches share
    the scores of lists of steps.

    Args:
        evaluation: object that scores the out-of-fold predictions.
        own: steps of each class in the YAML, from which the search starts.
        parts: numbers of the parts to leave out; None for the search on all cases.
        part_of: number of the part of each case, by id.
        presence: whether to also search steps that require the presence head.
    """

    def __init__(
        self,
        evaluation: OofScores,
        own: Sequence[Steps],
        parts: Sequence[int | None],
        part_of: Mapping[str, int],
        presence: bool = False,
    ) -> None:
        self.evaluation, self.own, self.parts, self.presence = evaluation, own, parts, presence
        self.metric = evaluation.ensemble.comp.metric
        classes = range(len(own))
        self.best: dict[tuple[int | None, int], Steps] = {
            (part, index): own[index] for part in parts for index in classes
        }
        case_parts = np.array([part_of[case] for case in evaluation.cases])
        self.selected = {part: np.ones(len(case_parts), bool) if part is None else case_parts != part for part in parts}

    def run(self, context: Context) -> dict[int | None, list[Steps]]:
        """Search the slots of the lists of steps (see `StepSlot`) one by one, in at most `MAX_SWEEPS` rounds.

        The best threshold depends on the later steps, and the best later steps depend on the threshold. So after the
        first round, further rounds search only the slots whose `searched_again` is true, until a round changes no list
        of steps.

        Args:
            context: context whose log receives progress messages.

        Returns:
            For each part that is left out (None for the search on all cases), the best steps of each class.
        """
        exp, truths = self.evaluation.ensemble.runs[0].exp, self.evaluation.truth_sizes()
        largest = max(int(np.prod(_shape(row))) for row in self.evaluation.rows.values())
        boundary = any(run.exp.prepare.object_key is not None for run, _ in self.evaluation.ensemble.active)
        plans = [
            search_slots(exp, [case[index] for case in truths], largest, boundary, own, self.presence)
            for index, own in enumerate(self.own)
        ]
        self.evaluation.score({index: (own,) for index, own in enumerate(self.own)})
        count = max(len(plan) for plan in plans)
        for sweep in range(MAX_SWEEPS):
            before = dict(self.best)
            for position in range(count):
                current = [
                    (index, plan[position])
                    for index, plan in enumerate(plans)
                    if position < len(plan) and (sweep == 0 or plan[position].searched_again)
                ]
                if not current:
                    continue
                requests: dict[int, tuple[Steps, ...]] = {}
                for index, slot in current:
                    lists = [steps for part in self.parts for steps in self._candidates(part, index, slot)]
                    requests[index] = tuple(dict.fromkeys(lists))
                self.evaluation.score(requests)
                for part in self.parts:
                    for index, slot in current:
                        self._choose(part, index, self._candidates(part, index, slot))
                kinds = ", ".join(dict.fromkeys(" or ".join(slot.names) for _, slot in current)).replace("_", " ")
                context.say(f"tuning {kinds}: score {self._value(None):.4f} on all cases")
            if self.best == before:
                break
        return {part: [self.best[part, index] for index in range(len(self.own))] for part in self.parts}

    def _candidates(self, part: int | None, index: int, slot: StepSlot) -> list[Steps]:
        return slot.candidates(self.best[part, index], step_order(self.own[index]))

    def _choose(self, part: int | None, index: int, lists: Sequence[Steps]) -> None:
        """Replace the best steps so far if another list of steps has a better score.

        Of several lists with the same best score, the first is used, which is the simplest.

        Args:
            part: number of the part that is left out; None for the search on all cases.
            index: index of the class.
            lists: the lists of steps to compare with the best steps so far.
        """
        best = self._score(part, index, self.best[part, index])
        for steps in lists:
            value = self._score(part, index, steps)
            if self.metric.direction.is_better(value, best, margin=1e-9):  # `best` may be nan
                self.best[part, index], best = steps, value

    def _score(self, part: int | None, index: int, steps: Steps) -> float:
        """Return the score of a class with a list of steps, over all cases that are not in a part.

        Args:
            part: the part to leave out; None to use all cases.
            index: index of the class.
            steps: the list of steps.
        """
        scores = self.evaluation.scores[index, steps]
        return class_score([scores[case] for case in self.evaluation.cases], self.metric, self.selected[part])

    def _value(self, part: int | None) -> float:
        classes = range(len(self.own))
        return float(np.nanmean([self._score(part, index, self.best[part, index]) for index in classes]))


def class_score(rows: Sequence[dict[str, Any]], metric: MetricConfig, selected: np.ndarray[Any, Any]) -> float:
    """Return the metric of one class over the selected cases; nan if none of them has a score.

    Args:
        rows: scores of the class, one dictionary per case.
        metric: metric of the competition.
        selected: (cases) bool, True for the cases to include.
    """
    if metric.average == "global":
        counts = [np.array([row[key] for row in rows])[selected].sum() for key in sum_columns(metric, rows[0])]
        return float(score_from_counts(metric, *counts))
    scores = np.array([row["score"] for row in rows], np.float64)[selected]
    if metric.has_pooled_term and np.isfinite(scores).any():
        pooled, items = (np.array([row[key] for row in rows], np.float64)[selected] for key in ("pooled", "items"))
        return float(np.nanmean(scores - pooled) + (pooled * items).sum() / items.sum())
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")


def _shape(row: Any) -> list[int]:
    return list(json.loads(row.shape))


# Candidates


@dataclass(frozen=True)
class StepSlot:
    """Hold a slot in the list of steps: a position for which the search tries several alternatives.

    Attributes:
        names: names of the steps that can fill the slot.
        options: the alternatives. Each is a list of steps, usually with one step; an empty list leaves the slot empty.
        searched_again: whether later rounds of the search visit the slot again.
    """

    names: tuple[str, ...]
    options: tuple[Steps, ...]
    searched_again: bool = False

    def candidates(self, current: Steps, order: Sequence[str]) -> list[Steps]:
        """Return one list of steps per alternative: the current list of steps, with the alternative in this slot.

        Args:
            current: the current list of steps.
            order: names of all steps in the order in which they are applied.
        """
        rest = [step for step in current if step.name not in self.names]
        return [tuple(sorted([*rest, *option], key=lambda step: order.index(step.name))) for option in self.options]


def search_slots(
    exp: Experiment,
    truths: Sequence[TruthSizes],
    largest: int,
    has_boundary: bool,
    start: Steps,
    presence: bool = False,
) -> list[StepSlot]:
    """Return the slots to search for a class, in the order of the search, each with the alternatives to try.

    The slots of Maskfold's own steps come first, then the slots of the user's steps.

    Args:
        exp: the experiment.
        truths: for each case, the sizes of the class and of its objects in the labels.
        largest: number of pixels of the largest case.
        has_boundary: whether the probabilities include a boundary class.
        start: steps of the class in the YAML. If there are any, only steps with the same names are searched.
        presence: whether to also search steps that require the presence head.

    Returns:
        The slots. The alternatives of each slot include the steps that the YAML sets for this slot.
    """
    search = SearchContext(exp, truths, largest, has_boundary, presence)
    slots: dict[str, list[_Candidates]] = {}
    for name, cls in {**dict(_registered()), **{step.name: type(step.step) for step in start}}.items():
        steps = cls.candidates(search)
        if steps is not None:
            alternatives = tuple(StepConfig.of(name, step) for step in steps)
            slots.setdefault(cls.slot or name, []).append(_Candidates(name, cls, alternatives))
    kinds = {step.name for step in start}
    result = [_build_slot(members, kinds) for members in slots.values()]
    if start:
        result = [slot for slot in result if kinds & set(slot.names)]
    own = {slot.names: tuple(step for step in start if step.name in slot.names) for slot in result}
    return [replace(slot, options=tuple(dict.fromkeys([*slot.options, own[slot.names]]))) for slot in result]


def step_order(start: Steps) -> tuple[str, ...]:
    """Return the names of all steps in the order in which they are applied.

    Steps that make the mask come first, then the steps of the YAML in their order, then all others.

    Args:
        start: steps of the class in the YAML.
    """
    steps = {**dict(_registered()), **{step.name: type(step.step) for step in start}}
    masks = [name for name, cls in steps.items() if cls.creates_mask]
    own = [step.name for step in start]
    return (*masks, *(name for name in dict.fromkeys((*own, *steps)) if name not in masks))


class _Candidates(NamedTuple):
    """Hold one kind of step for the search: its name, its class, and the steps to try."""

    name: str
    cls: type[Step]
    steps: Steps


def _registered() -> list[tuple[str, type[Step]]]:
    return [(name, STEPS.get(name)) for name in STEPS.names()]


def _build_slot(members: Sequence[_Candidates], kinds: set[str]) -> StepSlot:
    """Return the slot for several kinds of steps that replace each other, so that a list contains at most one of them.

    Steps with the attribute `combines` are the exception: they are tried alone, and after each other step of the slot.

    Args:
        members: search candidates of each kind of step in the slot.
        kinds: names of the steps in the YAML.
    """
    plain = [member for member in members if not member.cls.combines]
    names = tuple(member.name for member in plain)
    options: tuple[Steps, ...] = ((), *((step,) for member in plain for step in member.steps))
    for member in members:
        if member.cls.combines and (not kinds or member.name in kinds):
            if kinds and not kinds & set(names):
                options = ((),)
            options = (*options, *((*option, step) for step in member.steps for option in options))
            names = (*names, member.name)
    return StepSlot(names, options, any(member.cls.searched_again for member in members))


# The stored result


def save_tuning(run: Run, tuning: TuningResult, key: dict[str, Any] | None = None) -> None:
    """Store the tuning result in the run's folder; the caller must hold the lock of the run.

    Args:
        run: the run.
        tuning: the result.
        key: the return value of `tuning_key` from before the search, which describes the data for which the result is
            valid. None to compute it now.
    """
    write_table(tuning.rows, run.folder / TUNING_SCORES_FILE)
    plain: dict[str, Any] = {
        "key": tuning_key(run) if key is None else key,
        "scores": sha256_of_file(run.folder / TUNING_SCORES_FILE),
        "settings": tuning.settings.model_dump(),
        "found": _plain_steps(tuning.best_steps),
        "nested_steps": {str(part): _plain_steps(steps) for part, steps in tuning.part_steps.items()},
        **{name: getattr(tuning, name) for name in ("before", "after", "nested", "kept")},
        "gain": tuning.gain._asdict(),
        "gate": None if tuning.presence_gain is None else tuning.presence_gain._asdict(),
    }
    write_json(run.folder / TUNING_FILE, {**plain, "digest": tuning_digest(plain)})


def load_tuning(run: Run, *, with_data: bool = False) -> TuningResult | None:
    """Return the tuning result that is stored in the run's folder.

    Return None if no result is stored, if the stored result is damaged, or if data, folds or `postprocess` have changed
    since the search.

    Args:
        run: the run.
        with_data: whether to also return None if the result is from version 0.1 and so does not record the hash of the
            labelled data.
    """
    plain = read_tuning_record(run, with_data=with_data)
    if plain is None:
        return None
    try:
        rows = read_scores(run.folder / TUNING_SCORES_FILE)
        part_steps = {int(part): _read_steps(steps) for part, steps in plain.get("nested_steps", {}).items()}
        return TuningResult(
            PostprocessConfig.model_validate(plain["settings"]),
            _read_steps(plain["found"]),
            float(plain["before"]),
            float(plain["after"]),
            float(plain["nested"]),
            read_gain(plain["gain"]),
            plain["kept"],
            rows,
            read_gain(plain["gate"]) if plain.get("gate") else None,
            part_steps,
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, MaskfoldError):
        return None  # a damaged file is not an error, because the search can be repeated


def read_gain(plain: Mapping[str, Any]) -> ScoreGain:
    """Return a gain from its stored values, in which None stands for nan."""
    return ScoreGain(**{name: float("nan") if value is None else float(value) for name, value in plain.items()})


def _plain_steps(steps: Mapping[str, Steps]) -> dict[str, Any]:
    return {name: [step.model_dump() for step in found] for name, found in steps.items()}


def _read_steps(plain: Mapping[str, Any]) -> dict[str, Steps]:
    return {name: tuple(map(StepConfig.model_validate, found)) for name, found in plain.items()}
