"""The rules of the plan, with fixed timings: the same timings give the same plan."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from competition.config.loading import load_experiment
from competition.errors import MaskfoldError
from competition.planning.init import Initialised
from competition.planning.lines import to_yaml
from competition.planning.measure import Measurement, largest_row, libraries_of
from competition.planning.plan import Plan, PlanOptions, make_plan, plan_record, table_rows
from competition.planning.recipe import LIGHT_VIEWS, experiment_lines, read_facts
from competition.planning.rules import (
    MAX_VALIDATIONS,
    MIN_CASES_SEEN,
    MIN_OBJECT_SIDE,
    MIN_STEPS,
    MIN_STEPS_ON_LARGE,
    MIN_STEPS_ON_PARTS,
    NETWORK_COST,
    NO_VALIDATION,
    Budget,
    Candidate,
    Timing,
    candidates_of,
    choose,
    count_windows,
    ema_decay,
    extrapolate,
    grids,
    is_enough,
    schedule_of,
    smallest,
)
from tests.planning.phantoms import decathlon, paired_names

MRI = candidates_of(grids((150, 120, 88), (1.0, 1.0, 1.0), 40.0))
Start = Callable[..., Initialised]


def timings(candidates: Sequence[Candidate], seconds: float) -> dict[Candidate, Timing]:
    """Return timings for a machine that takes these seconds for a million voxels of the standard network."""
    return {item: Timing(seconds * item.work / 1e6, 0.1, seconds * item.work / 1e6) for item in candidates}


def chosen(seconds: float, minutes: float, validated: int = 16) -> Candidate:
    return choose(MRI, timings(MRI, seconds), Budget(minutes, validated))


# Grids and candidates


def test_a_coarser_grid_resamples_the_fine_axes_first() -> None:
    found = grids((200, 200, 30), (0.5, 0.5, 2.0), 60.0)
    assert found[0].spacing is None and found[0].shape == (200, 200, 30)
    assert [grid.spacing for grid in found if grid.factor == 2] == [(1.0, 1.0, 2.0)]
    assert [grid.shape for grid in found if grid.factor == 2] == [(100, 100, 30)]


def test_small_objects_keep_their_grid() -> None:
    small = 1.3 * MIN_OBJECT_SIDE[3]
    assert [grid.factor for grid in grids((64, 64, 64), (1, 1, 1), small)] == [1.0, 1.25]
    assert len(grids((512, 512), None, 200.0, may_resample=False)) == 1


def test_images_get_a_length_of_their_longer_side() -> None:
    found = grids((300, 400), None, 100.0)
    assert found[0].long_side is None and all(grid.long_side % 32 == 0 for grid in found[1:] if grid.long_side)
    assert [(grid.times, grid.shape) for grid in found if grid.long_side == 192] == [("2.1", (144, 192))]


def test_the_factor_of_a_coarser_image_is_that_of_its_rounded_length() -> None:
    found = {grid.long_side: grid for grid in grids((220, 220), None, 67.0, 3.0)}
    assert [(side, grid.times, grid.keeps_width) for side, grid in found.items()] == [
        (None, "1", True),
        (192, "1.1", False),
        (160, "1.4", False),
        (96, "2.3", False),
    ]
    assert all(grid.keeps_width for grid in grids((220, 220), None, 67.0, 10.0))
    assert all(grid.keeps_width for grid in grids((220, 220), None, 67.0))
    assert [grid.long_side for grid in grids((64, 64), None, 64.0)] == [None, 32]  # 64 is not coarser


@pytest.mark.parametrize("shape", [(150, 120, 88), (35, 50, 36), (512, 512, 20), (300, 400), (1024, 1360)])
def test_candidates_are_ordered_and_differ(shape: tuple[int, ...]) -> None:
    found = candidates_of(grids(shape, (1.0,) * 3 if len(shape) == 3 else None, 50.0))
    assert len(set(found)) == len(found) and found[0].grid.factor == 1 and found[0].network == "wide"
    assert smallest(found).work == min(item.work for item in found)
    assert {item.network for item in found} <= set(NETWORK_COST[len(shape)])


def test_patches_that_are_parts_of_a_case_need_fewer_steps() -> None:
    small = candidates_of(grids((35, 50, 36), (1.0, 1.0, 1.0), 12.0))
    medium = [(item.patch, item.enough) for item in small if item.network == "medium" and item.grid.factor == 1]
    assert medium == [((40, 56, 40), MIN_STEPS_ON_LARGE[3]), ((32, 32, 40), MIN_STEPS[3]["medium"])]
    standard = [(item.patch, item.enough) for item in small if item.network == "standard" and item.grid.factor == 1]
    assert standard == [((40, 56, 40), MIN_STEPS_ON_LARGE[3]), ((32, 32, 40), MIN_STEPS_ON_PARTS[3])]
    cells = candidates_of(grids((256, 256), None, 17.0, may_resample=False), may_cut=True)
    standard = [(item.patch, item.enough) for item in cells if item.network == "standard" and item.batch == 4]
    parts = MIN_STEPS_ON_PARTS[2]
    assert standard == [((256, 256), MIN_STEPS_ON_LARGE[2]), ((128, 128), parts)]
    lesions = candidates_of(grids((256, 256), None, 150.0))
    assert {item.enough for item in lesions if item.network == "standard"} == {MIN_STEPS[2]["standard"]}


# Choice


def test_a_faster_machine_gets_a_finer_grid_and_a_larger_network() -> None:
    fast, usual, slow = (chosen(seconds, 15) for seconds in (0.1, 10.0, 60.0))
    assert fast.grid.factor == usual.grid.factor == 1 < slow.grid.factor
    assert fast.network == "wide" and usual.network in ("standard", "medium", "light")


def test_more_minutes_never_give_a_worse_candidate() -> None:
    places = [MRI.index(chosen(12.0, minutes)) for minutes in (1, 2, 5, 10, 30, 100, 300, 1000)]
    assert places == sorted(places, reverse=True) and places[-1] == 0


def vessels(width: float) -> list[Candidate]:
    """Return the candidates of the images of a retina, whose vessels have this width in pixels."""
    return candidates_of(grids((220, 220), None, 67.0, width))


@pytest.mark.parametrize(
    ("width", "minutes", "name"),
    [
        (3.0, 1, "own grid, light network, patch 128×128, batch 2"),  # 135 steps; the coarser grid would take 240
        (3.0, 1.5, "own grid, light network, patch 128×128, batch 2"),  # the coarser grid would get enough steps
        (3.0, 0.35, "2.3× coarser, light network, patch 96×96, batch 2"),  # fewer than 60 steps on the own grid
        (20.0, 1, "2.3× coarser, light network, patch 96×96, batch 2"),
        (3.0, 100, "own grid, standard network, patch 224×224, batch 8"),
    ],
)
def test_thin_structures_keep_their_grid(width: float, minutes: float, name: str) -> None:
    """On a grid that is 2.3 times as coarse, the Dice was 0.872 with 229 steps; on the own grid, 0.9445 with 170."""
    found = vessels(width)
    first = next(item for item in found if item.name == "2.3× coarser, light network, patch 96×96, batch 2")
    assert first == smallest(found)
    assert choose(found, {first: Timing(0.18, 0.06, 0.18)}, Budget(minutes, 5, 4)).name == name


def test_the_choice_gets_enough_steps() -> None:
    for seconds in (0.5, 5.0, 20.0):
        pick = chosen(seconds, 10)
        schedule = schedule_of(pick, timings(MRI, seconds)[pick], Budget(10, 16))
        assert is_enough(pick, schedule) and schedule.steps >= pick.enough >= MIN_STEPS[3][pick.network]
        assert schedule.steps * pick.seen >= MIN_CASES_SEEN


def test_a_hopeless_budget_gets_the_candidate_with_most_steps() -> None:
    pick, known = chosen(5000.0, 1), timings(MRI, 5000.0)
    steps = {item: schedule_of(item, known[item], Budget(1, 16)).steps for item in MRI}
    assert steps[pick] == max(steps.values())


def test_unmeasured_candidates_are_extrapolated_by_their_work() -> None:
    first = smallest(MRI)
    known = {first: Timing(1.0, 2.0, 3.0, 0.5, 0.9)}
    other = next(item for item in MRI if item.network == first.network and item.work > first.work)
    found = extrapolate(other, known)
    assert not found.measured and found.step == pytest.approx(other.work / first.work)
    assert found.step_wall == pytest.approx(3 * found.step)
    assert extrapolate(first, known).step == 1.0 and extrapolate(first, known).case == 2.0
    whole = next(item for item in MRI if item.network == first.network and item.grid.factor == 1)
    work, base = (count_windows(item.grid.shape, item.patch, 0.5) * item.work / 2 for item in (whole, first))
    assert extrapolate(whole, known).case == pytest.approx(2.0 + (work - base) / first.work / 3)


def test_a_promising_candidate_is_worth_measuring() -> None:
    """Timings that promise 0.9 of enough steps recommend a candidate only while it has not been measured."""
    small = candidates_of(grids((40, 56, 40), (1.0, 1.0, 1.0), 12.0))
    first, budget = smallest(small), Budget(10, 0)
    wanted = next(item for item in small if item.network == "light" and item.enough == MIN_STEPS_ON_PARTS[3])
    seconds = 592.0 / (0.9 * wanted.enough)
    known = {first: Timing(seconds * first.work / wanted.work, 0.0, 1.0)}
    assert choose(small, known, budget, hope=0.8) == wanted != choose(small, known, budget)
    measured = {item: Timing(seconds * item.work / wanted.work, 0.0, 1.0) for item in small}
    assert choose(small, measured, budget, hope=0.8) == choose(small, measured, budget) != wanted


# Schedule


def test_everything_fits_into_the_budget() -> None:
    timing, budget = Timing(0.5, 1.0, 0.5), Budget(10, 20)
    schedule = schedule_of(MRI[0], timing, budget)
    used = schedule.steps * 0.5 + (schedule.validations + 1.15) * 20 * 1.0
    assert used < 600 - 8 and used > 540
    assert schedule.validations * 20 <= 0.1 * 600 and schedule.validations == 3


def test_a_slow_validation_happens_only_at_the_end() -> None:
    schedule = schedule_of(MRI[0], Timing(0.5, 4.0, 0.5), Budget(10, 20))
    assert schedule.validations == 0 and schedule.validate_every == NO_VALIDATION
    fast = schedule_of(MRI[0], Timing(0.5, 0.01, 0.5), Budget(10, 20))
    epochs = fast.steps / fast.steps_per_epoch
    assert fast.validations == MAX_VALIDATIONS and 1 <= fast.validate_every <= epochs / MAX_VALIDATIONS + 1


def test_a_slow_prediction_overlaps_less_and_is_not_mirrored() -> None:
    quick = schedule_of(MRI[0], Timing(0.5, 0.1, 0.5), Budget(10, 20, views=8))
    slow = schedule_of(MRI[0], Timing(0.5, 20.0, 0.5), Budget(10, 20, views=8))
    assert (quick.overlap, quick.mirrored) == (0.5, True) and (slow.overlap, slow.mirrored) == (0.25, False)
    assert quick.prediction == pytest.approx(8 * 0.1 * 20 / 600)


@pytest.mark.parametrize(("steps", "decay"), [(10, 0.8), (300, 0.967), (1000, 0.99), (100_000, 0.995)])
def test_averaged_weights_reach_back_over_a_tenth_of_the_steps(steps: int, decay: float) -> None:
    assert ema_decay(steps) == decay


def test_windows() -> None:
    assert count_windows((64, 64), (64, 96), 0.5) == 1 and count_windows((100, 64), (64, 64), 0.5) == 3
    assert count_windows((128, 128, 128), (64, 64, 64), 0.0) == 8


# The planner


def machine(
    seconds: float, log: list[str] | None = None, failing: Callable[[dict[str, Any]], str] | None = None
) -> Any:
    """Return a measuring function of a machine that takes these seconds for a million voxels."""

    def measure(plain: dict[str, Any], rows: Any, folder: Path, threads: int, limit: float) -> Measurement | str:
        if log is not None:
            log.append(f"{plain['model']['target']} {plain['patch']['size']} {plain['training']['batch_size']}")
        if failing is not None and (reason := failing(plain)):
            return reason
        voxels = plain["training"]["batch_size"]
        for side in plain["patch"]["size"]:
            voxels *= side
        step = seconds * voxels / 1e6
        assert len(rows) == 3 and threads == 1 and limit > 0
        return Measurement(step, 2 * step, 2 * step, 0.1, 0.2, 0.9, 1.0, 10_000, "cpu", "32-true", 3, 5 * step)

    return measure


def plan_of(done: Initialised, measure: Any, minutes: float = 5.0, **more: Any) -> Plan:
    plan = make_plan(done.exploration, PlanOptions(minutes, **more), measure=measure)
    assert plan is not None
    return plan


def test_the_recommended_candidate_is_measured(start: Start, tmp_path: Path) -> None:
    done, log = start(decathlon), list[str]()
    plan = plan_of(done, machine(1.0, log))
    pick = next(row for row in plan.rows if row.chosen)
    assert pick.measurement is not None and pick.enough and len(log) == len(plan.rows) <= 6 and plan.warnings == []
    assert pick.timing.step_wall == 2 * pick.timing.step  # the processor's seconds decide with one thread
    path = done.competition.with_name("planned.yaml")
    path.write_text(to_yaml(plan.lines, ["planned"]))
    exp = load_experiment(path)
    assert exp.training.budget_minutes == 5 and list(pick.candidate.patch) == exp.patch.size
    assert any(cells[0].startswith("→") for cells in table_rows(plan))
    record = plan_record(plan)
    assert record["values"]["training.budget_minutes"] == 5 and len(record["candidates"]) == len(plan.rows)
    again = plan_of(done, machine(1.0))
    assert [line.value for line in again.lines] == [line.value for line in plan.lines]


@pytest.mark.parametrize(("width", "long_side", "timed"), [(3.0, None, 2), (20.0, 96, 1)])
def test_the_reason_for_a_coarser_grid_names_the_fastest_settings(
    start: Start, monkeypatch: pytest.MonkeyPatch, width: float, long_side: int | None, timed: int
) -> None:
    done = start(paired_names)
    facts = read_facts(done.exploration)
    assert facts is not None
    facts = dataclasses.replace(facts, shape=(220, 220), object_side=67.0, width=width)
    monkeypatch.setattr("competition.planning.plan.read_facts", lambda *_: facts)
    plan = plan_of(done, machine(10.0), minutes=1.0)
    assert len(plan.rows) == timed and all(row.timing.measured for row in plan.rows)
    found = [line for line in plan.lines if line.path == ("prepare", "long_side")]
    assert [line.value for line in found] == ([] if long_side is None else [long_side])
    if found:
        assert found[0].reason == (
            "the grid is 2.3 times as coarse as the data, because even the fastest settings on the data's own grid "
            "(light network, patch 128×128, batch 2) would take only about 125 steps in 1 minute, by estimate, but "
            "300 are needed; on the coarser grid, about 253 steps fit"
        )
    (warning,) = plan.warnings
    assert ("whose grid is fine enough for the thin structures" in warning) == (long_side is None)


def test_a_machine_that_is_too_slow_is_told(start: Start) -> None:
    plan = plan_of(start(decathlon), machine(4000.0))
    assert len(plan.warnings) == 1 and "the network will learn almost nothing" in plan.warnings[0]
    assert "--minutes" in plan.warnings[0] and "a GPU" in plan.warnings[0]


def test_what_does_not_fit_into_memory_is_left_out(start: Start) -> None:
    def failing(plain: dict[str, Any]) -> str:
        return "memory ran out" if "DynUNet" in plain["model"]["target"] else ""

    plan = plan_of(start(decathlon), machine(0.001, failing=failing))
    assert next(row for row in plan.rows if row.chosen).candidate.network in ("medium", "light")


def test_nothing_can_be_measured(start: Start) -> None:
    with pytest.raises(MaskfoldError, match="cannot be timed on this machine: no luck") as caught:
        plan_of(start(paired_names), machine(1.0, failing=lambda plain: "no luck"))
    assert "--no-measure" in str(caught.value.hint)


def bf16_machine(fp32: float, log: list[str]) -> Any:
    """Return a measuring function of a CPU whose steps take a second in bf16, and `fp32` seconds in fp32."""

    def measure(plain: dict[str, Any], rows: Any, folder: Path, threads: int, limit: float) -> Measurement | str:
        precision = plain["training"]["precision"]
        log.append(precision)
        step, name = (fp32, "32-true") if precision == "fp32" else (0.1, "bf16-mixed")
        return Measurement(step, step, step, 0.1, 0.2, 0.9, 1.0, 10_000, "cpu", name, 3, 5 * step)

    return measure


@pytest.mark.parametrize(("fp32", "planned"), [(0.05, "fp32"), (0.099, "auto"), (0.2, "auto")])
def test_the_faster_precision_of_a_cpu_is_planned(start: Start, fp32: float, planned: str) -> None:
    done, log = start(paired_names), list[str]()
    plan = plan_of(done, bf16_machine(fp32, log))
    values = {line.path: line.value for line in plan.lines}
    assert values["training", "precision"] == planned
    assert log.count("fp32") == 1 and log[-1] == "fp32"  # only the chosen candidate is measured twice
    pick = next(row for row in plan.rows if row.chosen)
    assert pick.timing.step == (fp32 if planned == "fp32" else 0.1)

    log.clear()
    plan_of(done, bf16_machine(fp32, log), pins={("training", "precision"): "bf16"})
    assert set(log) == {"bf16"}


def large_case_machine(outcome: float | str, rows_seen: list[list[str]]) -> Any:
    """Return a measuring function that needs 1 GiB for cases of median size, and `outcome` GiB (or fails) for `big`."""

    def measure(plain: dict[str, Any], rows: Any, folder: Path, threads: int, limit: float) -> Measurement | str:
        ids = [row["id"] for row in rows]
        rows_seen.append(ids)
        if ids == ["big"] and isinstance(outcome, str):
            return outcome
        memory = outcome if ids == ["big"] else 1.0
        assert isinstance(memory, float)
        return Measurement(0.1, 0.1, 0.1, 0.1, 0.2, 0.9, memory, 10_000, "cpu", "32-true", 3, 0.5)

    return measure


@pytest.mark.parametrize(("outcome", "memory"), [(3.0, 3.0), (0.5, 1.0)])
def test_the_memory_for_the_largest_case_is_measured(
    start: Start, monkeypatch: pytest.MonkeyPatch, outcome: float, memory: float
) -> None:
    done, seen = start(paired_names), list[list[str]]()
    monkeypatch.setattr("competition.planning.plan.largest_row", lambda train: ({"id": "big"}, 10.0))
    plan = plan_of(done, large_case_machine(outcome, seen))
    pick = next(row for row in plan.rows if row.chosen)
    assert seen.count(["big"]) == 1 and seen[-1] == ["big"]
    assert pick.timing.memory_gib == pytest.approx(memory, abs=0.01) and plan.warnings == []
    assert pick.timing.step == 0.1  # the time of a step stays that of median cases


def test_a_largest_case_that_does_not_fit_is_a_warning(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    done, seen = start(paired_names), list[list[str]]()
    monkeypatch.setattr("competition.planning.plan.largest_row", lambda train: ({"id": "big"}, 10.0))
    plan = plan_of(done, large_case_machine("the process was killed, probably because memory ran out", seen))
    assert len(plan.warnings) == 1 and "big" in plan.warnings[0] and "memory ran out" in plan.warnings[0]


def test_a_largest_case_that_would_take_long_is_not_measured(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    done, seen = start(paired_names), list[list[str]]()
    monkeypatch.setattr("competition.planning.plan.largest_row", lambda train: ({"id": "big"}, 1000.0))
    plan_of(done, large_case_machine(3.0, seen))
    assert ["big"] not in seen


def test_the_largest_row() -> None:
    def case(name: str, side: int) -> Any:
        truth = SimpleNamespace(foreground=1)
        return SimpleNamespace(id=name, shape=(side, side), row=SimpleNamespace(id=name), truth=truth)

    cases = [case("a", 10), case("b", 40), case("c", 10), case("d", 9)]
    assert largest_row(cases) == ({"id": "b"}, 16.0)
    assert largest_row([case("a", 10), case("b", 12), case("c", 10)]) is None  # 1.44 times the median
    assert largest_row([]) is None


def test_values_of_the_user_are_measured(start: Start) -> None:
    log: list[str] = []
    plan_of(start(paired_names), machine(1.0, log), pins={("training", "batch_size"): 3})
    assert log and all(line.endswith(" 3") for line in log)


def test_explore_suggests_the_patch_of_the_plan(start: Start) -> None:
    for maker in (decathlon, paired_names):
        done = start(maker)
        plan = make_plan(done.exploration, PlanOptions(measures=False))
        assert plan is not None
        planned = next(line.value for line in plan.lines if line.path == ("patch",))
        assert yaml.safe_load(done.exploration.snippet)["patch"] == planned


def test_volumes_that_training_sees_rarely_are_changed_little(start: Start) -> None:
    exploration = start(decathlon).exploration
    facts = read_facts(exploration, 2)
    assert facts is not None
    candidate = candidates_of(grids(facts.shape, facts.spacing, facts.object_side))[0]
    cases = len(facts.train) / 2  # of a fold's training
    presets = []
    for views in (LIGHT_VIEWS - 1, LIGHT_VIEWS):
        steps = math.ceil(views * cases / candidate.batch)
        schedule = dataclasses.replace(schedule_of(candidate, Timing(1.0, 1.0, 1.0), Budget(10, 1)), steps=steps)
        lines = experiment_lines(facts, candidate, schedule, 10)
        presets.append(next(line.value["preset"] for line in lines if line.path == ("augment",)))
    assert presets == ["light", "medium"]


def test_large_cases_count_more(start: Start) -> None:
    """One case of four times the median size takes as long as four."""
    facts = read_facts(start(paired_names).exploration, 2)
    assert facts is not None and facts.validated == pytest.approx(len(facts.train) / 2)
    facts.train[0].shape = tuple(2 * side for side in facts.train[0].shape or ())
    assert facts.validated == pytest.approx((len(facts.train) + 3) / 2)


def test_a_large_patch_comes_before_a_fine_grid() -> None:
    rest = [item for item in MRI if item.network == "light"][len(grids((150, 120, 88), (1, 1, 1), 40.0)) :]
    sizes = [item.patch[0] * item.patch[1] * item.patch[2] for item in rest if item.grid.factor == 1]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 3


@pytest.mark.parametrize(
    ("dimensions", "libraries"),
    [
        (2, ["albumentations.pytorch", "monai.losses", "segmentation_models_pytorch"]),
        (3, ["monai.losses", "monai.networks.nets"]),
    ],
)
def test_the_server_imports_what_the_candidates_need(dimensions: int, libraries: list[str]) -> None:
    model = "segmentation_models_pytorch.Unet" if dimensions == 2 else "monai.networks.nets.DynUNet"
    plain = {
        "competition": {"dimensions": dimensions},
        "model": {"target": model},
        "loss": [{"target": "monai.losses.DiceCELoss", "weight": 1.0}],
    }
    assert libraries_of(plain) == libraries
