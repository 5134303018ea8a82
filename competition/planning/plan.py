"""Plan an experiment: read facts about the data, measure candidates on this machine, and choose one.

The plan is a list of YAML keys with reasons.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from competition.errors import MaskfoldError
from competition.explore import Exploration
from competition.io import temporary_folder
from competition.planning.lines import Line
from competition.planning.measure import MIN_TIMED, REPEATED_CASE, Measurement, largest_row, measure, sample_rows
from competition.planning.recipe import Facts, Precision, experiment_lines, grids_of, read_facts
from competition.planning.rules import (
    HOPE,
    HOPELESS_STEPS,
    Budget,
    Candidate,
    Timing,
    candidates_of,
    choose,
    extrapolate,
    is_enough,
    schedule_of,
    smallest,
)
from competition.text import format_amount, format_count

DEFAULT_MINUTES = 15.0
# Maximum seconds of all measurements: converted to a machine that does nothing else, and by the clock.
PLANNING_SECONDS, PATIENCE = 50.0, 240.0
FP32_GAIN = 1.05  # on a CPU with bf16, the plan sets fp32 if it gets at least this many times as many steps
KEEPING = " whose grid is fine enough for the thin structures"
PLAN_FILE = "plan.json"
Measure = Callable[[dict[str, Any], Sequence[dict[str, Any]], Path, int, float], Measurement | str]
Pins = Mapping[tuple[str, ...], Any]  # values that the user has set, by path of keys


@dataclass(frozen=True)
class Row:
    """Hold a row of the plan's table: a candidate, its timing, and its steps within the budget.

    Attributes:
        candidate: the candidate.
        timing: its timing, measured or extrapolated.
        measurement: the measurement; None if the timing is extrapolated.
        steps: number of training steps that fit into the time budget of a fold.
        enough: whether this number of steps is enough to train the candidate.
        chosen: whether the plan uses this candidate.
    """

    candidate: Candidate
    timing: Timing
    measurement: Measurement | None
    steps: int
    enough: bool
    chosen: bool


@dataclass(frozen=True, eq=False)
class Plan:
    """Hold a plan: the keys of experiment.yaml, and the timed candidates.

    Attributes:
        lines: keys of experiment.yaml with the planned values and their reasons; `PlanOptions.pins` are not applied.
        minutes: time budget of a fold; None trains a fixed number of steps.
        threads: threads for which the candidates were measured.
        rows: a row for each measured candidate and for the chosen candidate; empty if nothing was measured.
        seconds: seconds that the measurements took.
        warnings: sentences for the user.
    """

    lines: list[Line]
    minutes: float | None
    threads: int
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PlanOptions:
    """Hold the settings of a plan that the user chooses.

    Attributes:
        minutes: time budget of a fold in minutes; None means `DEFAULT_MINUTES`.
        folds: number of folds; None means five, or the number of groups if there are fewer groups.
        threads: threads of a fold.
        pins: values that the user has set; the plan does not change them.
        measures: whether to time steps on this machine.
    """

    minutes: float | None = None
    folds: int | None = None
    threads: int = 1
    pins: Pins = field(default_factory=dict)
    measures: bool = True


def make_plan(
    exploration: Exploration,
    options: PlanOptions,
    say: Callable[[str], None] = lambda _: None,
    measure: Measure = measure,
    clock: Callable[[], float] = time.monotonic,
) -> Plan | None:
    """Return the plan of a first experiment; None if no training case is readable.

    Args:
        exploration: exploration of the competition.
        options: settings that the user chooses.
        say: function that receives a line of text before each measurement.
        measure: function that measures an experiment, as `competition.planning.measure.measure` does.
        clock: function that returns the time in seconds.

    Raises:
        MaskfoldError: no candidate could be measured.
    """
    facts = read_facts(exploration, options.folds)
    if facts is None:
        return None
    candidates = candidates_of(grids_of(facts), may_cut=facts.comp.instances)
    if not options.measures:
        candidate = default_candidate(candidates)
        return Plan(experiment_lines(facts, candidate, None, options.minutes), options.minutes, options.threads)
    minutes = DEFAULT_MINUTES if options.minutes is None else options.minutes
    minutes = int(minutes) if minutes == int(minutes) else minutes  # the time as a user writes it
    return _Planner(facts, candidates, minutes, options, say, measure, clock).plan()


def default_candidate(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate of a plan without timings: the standard network on the data's own grid."""
    return next(item for item in candidates if item.network == "standard")


class _Planner:
    """Find the best candidate by timing candidates on this machine.

    After each timing, the rules recommend a candidate. The search ends when the recommended candidate has been timed.
    """

    def __init__(
        self,
        facts: Facts,
        candidates: list[Candidate],
        minutes: float,
        options: PlanOptions,
        say: Callable[[str], None],
        measure: Measure,
        clock: Callable[[], float],
    ) -> None:
        self.facts, self.candidates, self.minutes, self.options = facts, candidates, minutes, options
        self.say, self.measure, self.clock = say, measure, clock
        self.budget = Budget(minutes, facts.validated, 2 ** len(facts.flips))
        self.known: dict[Candidate, Timing] = {}
        self.measurements: dict[Candidate, Measurement] = {}
        self.failed: dict[Candidate, str] = {}
        # Seconds on a machine that does nothing else: what a measurement takes in addition to its steps and cases, and
        # the total of all measurements.
        self.overhead = self.used = 0.0
        self.slowdown = 1.0  # seconds by the clock for one second of such a machine
        self.rows = sample_rows(facts.train)
        self.precision, self.runs = Precision(), 0
        self.large_case_warnings: list[str] = []

    def plan(self) -> Plan:
        start = self.clock()
        with temporary_folder(Path(gettempdir()) / "maskfold-plan") as folder:
            self._measure(smallest(self.candidates), folder, PATIENCE)
            if not self.known:
                reason = next(iter(self.failed.values()))
                raise MaskfoldError(
                    f"A step of the smallest network cannot be timed on this machine: {reason.rstrip('.')}.",
                    "Correct the data or the YAML. For a plan without timing, give the folder of the data and a new "
                    "name to this command: maskfold init FOLDER --no-measure --name NAME",
                )
            while (pick := choose(self._possible(), self.known, self.budget, hope=HOPE)) not in self.known:
                expected, left = self._expected_seconds(pick), PATIENCE - (self.clock() - start)
                if self.used + expected > PLANNING_SECONDS or expected * self.slowdown > left:
                    pick = choose(self._possible(), self.known, self.budget)
                    break
                self._measure(pick, folder, left)
            if pick in self.known and ("training", "precision") not in self.options.pins:
                self._try_fp32(pick, folder, PATIENCE - (self.clock() - start))
            if pick in self.known:
                self._try_largest_case(pick, folder, PATIENCE - (self.clock() - start))
        return self._result(pick, self.clock() - start)

    def _possible(self) -> list[Candidate]:
        return [item for item in self.candidates if item not in self.failed]

    def _expected_seconds(self, candidate: Candidate) -> float:
        """Return the seconds that the measurement of a candidate would take on an otherwise idle machine."""
        timing = extrapolate(candidate, self.known)
        predictions = 1 if timing.case > REPEATED_CASE else 2
        return self.overhead + (MIN_TIMED + 1) * timing.step + predictions * timing.case

    def _measure(self, candidate: Candidate, folder: Path, limit: float) -> None:
        self.say(f"timing: {candidate.name}")
        found = self._run(candidate, folder, limit, self.precision)
        if isinstance(found, str):
            self.failed[candidate] = found
        else:
            self.measurements[candidate], self.known[candidate] = found, self._timing(candidate, found)

    def _try_fp32(self, pick: Candidate, folder: Path, limit: float) -> None:
        """If the chosen candidate was measured in bf16 on a CPU, measure it in fp32 too, and use the faster precision.

        On some processors, bf16 halves the time of a 3D network's step, but small 2D networks can be slower in bf16.
        """
        found = self.measurements[pick]
        expected = 2 * self._expected_seconds(pick)
        is_bf16 = found.device.startswith("cpu") and found.precision.startswith("bf16")
        if not is_bf16 or self.used + expected > PLANNING_SECONDS or expected * self.slowdown > limit:
            return
        self.say(f"timing: {pick.name}, fp32")
        fp32 = self._run(pick, folder, limit, Precision("fp32"))
        if isinstance(fp32, str):
            return
        before, after = self.known[pick], self._timing(pick, fp32)
        steps = [schedule_of(pick, timing, self.budget).steps for timing in (before, after)]
        if steps[1] < FP32_GAIN * steps[0]:
            return
        self.measurements[pick], self.known[pick] = fp32, after
        self.precision = Precision(
            "fp32", f"on this processor, a step takes {after.step:.2f} s in fp32, and {before.step:.2f} s in bf16"
        )

    def _try_largest_case(self, pick: Candidate, folder: Path, limit: float) -> None:
        """If the largest case is much larger than the median case, measure the chosen candidate on it too.

        The prediction of this case may need more memory than training does.
        """
        largest = largest_row(self.facts.train)
        if largest is None:
            return
        row, ratio = largest
        expected = self._expected_seconds(pick) + 2 * ratio * self.known[pick].case
        if self.used + expected > PLANNING_SECONDS or expected * self.slowdown > limit:
            return
        self.say(f"memory: {pick.name}, largest case ({row['id']})")
        found = self._run(pick, folder, limit, self.precision, [row])
        if isinstance(found, str):
            self.large_case_warnings.append(
                f"the largest case, {row['id']}, is {ratio:.0f} times as large as the median case, and cannot "
                f"be predicted on this machine: {found.rstrip('.')}. To solve this, set a coarser "
                "prepare.spacing (2D: a smaller prepare.long_side), or use a machine with more memory"
            )
            return
        found = replace(found, case_bytes=self.measurements[pick].case_bytes)  # further open cases are not as large
        memory = max(self.known[pick].memory_gib, self._timing(pick, found).memory_gib)
        self.known[pick] = replace(self.known[pick], memory_gib=memory)

    def _run(
        self,
        candidate: Candidate,
        folder: Path,
        limit: float,
        precision: Precision,
        rows: Sequence[dict[str, Any]] | None = None,
    ) -> Measurement | str:
        """Measure a candidate, and add the seconds to the time used so far.

        Args:
            candidate: the candidate.
            folder: folder for the files of all measurements.
            limit: seconds after which the measurement is stopped.
            precision: the precision of the network.
            rows: rows of the case table for the cases of the measurement; None means a few cases of about median size.

        Returns:
            The measurement, or the reason for its failure as text.
        """
        start, threads = self.clock(), self.options.threads
        lines = experiment_lines(self.facts, candidate, None, self.minutes, precision=precision)
        plain = apply_pins(to_tree(lines), self.options.pins)
        plain["competition"] = self.facts.comp.model_dump(by_alias=True, mode="json")
        self.runs += 1
        found = self.measure(plain, self.rows if rows is None else rows, folder / str(self.runs), threads, limit)
        if isinstance(found, str):
            return found
        seconds = found.processor / threads if found.device.startswith("cpu") else self.clock() - start
        measured = (found.steps + 1) * found.step_seconds(threads) + 2 * found.case_seconds(threads)
        self.overhead = max(0.0, seconds - measured)
        self.used += seconds
        self.slowdown = max(1.0, (self.clock() - start) / max(1e-9, seconds))
        return found

    def _timing(self, candidate: Candidate, found: Measurement) -> Timing:
        threads = self.options.threads
        return Timing(
            found.step_seconds(threads),
            found.case_seconds(threads),
            found.step_wall,
            found.training_memory(len(self.facts.train), min(1.0, candidate.seen)),
            found.network_share,
        )

    def _result(self, pick: Candidate, seconds: float) -> Plan:
        timing = self.known.get(pick) or extrapolate(pick, self.known)
        schedule = schedule_of(pick, timing, self.budget)
        table = [self._row(item, item == pick) for item in self.candidates if item in self.known or item == pick]
        reason = self._grid_reason(pick)
        lines = experiment_lines(self.facts, pick, schedule, self.minutes, reason, self.precision)
        return Plan(
            lines,
            self.minutes,
            self.options.threads,
            table,
            seconds,
            self._warnings(pick, schedule.steps) + self.large_case_warnings,
        )

    def _row(self, candidate: Candidate, chosen: bool) -> Row:
        timing = self.known.get(candidate) or extrapolate(candidate, self.known)
        schedule = schedule_of(candidate, timing, self.budget)
        enough = is_enough(candidate, schedule)
        return Row(candidate, timing, self.measurements.get(candidate), schedule.steps, enough, chosen)

    def _grid_reason(self, pick: Candidate) -> str:
        """Return why the grid is coarser than the data's own grid; an empty text for the data's own grid."""
        if pick.grid.factor == 1:
            return ""
        start = f"the grid is {pick.grid.times} times as coarse as the data, because"
        own = [self._row(item, False) for item in self._possible() if item.grid.factor == 1]
        if not own:
            return f"{start} no settings could be timed on the data's own grid"
        if any(row.enough for row in own):
            return f"{start} on the data's own grid, only smaller patches or batches would get enough steps"
        best, here = max(own, key=lambda row: row.steps), self._row(pick, True)
        more = "" if here.enough else f"; on the coarser grid, about {format_count(here.steps, 'step')} fit"
        return (
            f"{start} even the fastest settings on the data's own grid ({best.candidate.settings}) would take only "
            f"about {format_count(best.steps, 'step')} in {format_amount(self.minutes, 'minute')}"
            f"{'' if best.timing.measured else ', by estimate'}, but {best.candidate.needed:,} are needed{more}"
        )

    def _warnings(self, pick: Candidate, steps: int) -> list[str]:
        enough = pick.enough
        if steps >= enough:
            return []
        needed = self.minutes * enough / max(1, steps)
        is_hopeless = steps < HOPELESS_STEPS
        keep = "" if all(item.grid.keeps_width for item in self.candidates) or not pick.grid.keeps_width else KEEPING
        consequence = f"the network will {'learn almost nothing' if is_hopeless else 'score lower than the data allow'}"
        return [
            (
                f"even with the fastest settings{keep}, a fold takes only about {format_count(steps, 'step')} in "
                f"{format_amount(self.minutes, 'minute')}, "
                f"but needs {enough:,} steps, so {consequence}. To get enough steps, set --minutes "
                f"{max(1, round(needed + 1)):,}, or use more cores or a GPU"
            )
        ]


def to_tree(lines: Sequence[Line]) -> dict[str, Any]:
    """Return the values of lines as nested mappings: the path (`a`, `b`) becomes {a: {b: value}}."""
    tree: dict[str, Any] = {}
    for line in lines:
        place = tree
        for key in line.path[:-1]:
            place = place.setdefault(key, {})
        place[line.path[-1]] = line.value
    return tree


def apply_pins(tree: dict[str, Any], pins: Pins) -> dict[str, Any]:
    """Set the user's values in a tree of settings, in place; return the tree."""
    for path, value in pins.items():
        place = tree
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = value
    return tree


# What the user sees

HEADER = ["candidate", "s/step", "by the clock", "steps", "enough", "GiB", "network"]


def table_rows(plan: Plan) -> list[list[str]]:
    """Return the table of candidates; `HEADER` names the columns."""
    return [
        [
            ("→ " if row.chosen else "  ") + row.candidate.name + ("" if row.timing.measured else " (estimated)"),
            f"{row.timing.step:.2f}",
            f"{row.timing.step_wall:.2f}",
            f"{row.steps:,}",
            "yes" if row.enough else "no",
            f"{row.timing.memory_gib:.1f}",
            f"{row.timing.network_share:.0%}",
        ]
        for row in plan.rows
    ]


def plan_record(plan: Plan) -> dict[str, Any]:
    """Return the content of plan.json: the planned values, the table of candidates, and the warnings."""
    from dataclasses import asdict

    return {
        "minutes": plan.minutes,
        "threads": plan.threads,
        "planning_seconds": round(plan.seconds, 1),
        "values": {".".join(line.path): line.value for line in plan.lines},
        "candidates": [
            {
                "name": row.candidate.name,
                "factor": row.candidate.grid.factor,
                "network": row.candidate.network,
                "patch": list(row.candidate.patch),
                "batch": row.candidate.batch,
                "seconds_per_step": row.timing.step,
                "seconds_per_step_by_the_clock": row.timing.step_wall,
                "seconds_per_case": row.timing.case,
                "memory_gib": row.timing.memory_gib,
                "network_share": row.timing.network_share,
                "steps": row.steps,
                "enough": row.enough,
                "chosen": row.chosen,
                "measurement": None if row.measurement is None else asdict(row.measurement),
            }
            for row in plan.rows
        ],
        "warnings": plan.warnings,
    }
