"""The step `gate`: searched with the step that makes the mask, not used if it does not help, applied everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from competition.config.loading import load_experiment
from competition.config.postprocess import PostprocessConfig, StepConfig
from competition.data.masks import load_mask
from competition.datasets.demo import make_demo
from competition.ensembling.ensemble import EnsemblePredictor
from competition.ensembling.expected import estimate_score
from competition.errors import MaskfoldError
from competition.export.mlflow_model import write_predictor_folder
from competition.export.predictor import Predictor
from competition.postprocessing.case import CaseProbabilities
from competition.postprocessing.evaluation import OofScores
from competition.postprocessing.pipeline import drop_passing_gates, postprocess, run_steps
from competition.postprocessing.steps import TruthSizes
from competition.postprocessing.tuning import search_slots, step_order, tune_postprocessing
from competition.runs.blend import Ensemble
from competition.runs.checkpoint import save_weights
from competition.runs.oof import OofStore
from competition.submission.label_files import predict_images
from competition.submission.submit import submit, write_oof_submission
from competition.training.cross_validate import summarize_run
from tests.conftest import ROOT, TINY
from tests.finished_runs import soft


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with a presence head: 18 training and 3 test scans, every third without lesions."""
    folder = tmp_path_factory.mktemp("scans") / "demogate"
    make_demo("gate", folder, seed=5, cases=18, test_cases=3)
    return folder


@pytest.fixture
def gated(scans: Path) -> Callable[..., Any]:
    def make(*overrides: str) -> Any:
        return load_experiment(
            ROOT / "experiments" / "demo_gate" / "unet2d.yaml",
            [
                f"competition.root={scans}",
                "folds.k=2",
                "training.precision=fp32",
                *TINY[2],
                "patch.size=[96,96]",
                "inference.tta=[]",
                *overrides,
            ],
        )

    return make


def rewritten(run: Any, gate_of: Callable[[bool, np.random.Generator], float], fake: bool) -> None:
    """Store the run's out-of-fold predictions again, with presence, and with fake lesions in the empty cases."""
    generator = np.random.default_rng(7)
    rows = {row.id: row for row in run.cases.itertuples(index=False)}
    for fold in run.fold_numbers():
        store = OofStore(run.folder / f"fold_{fold}" / "oof", run.exp.inference.store)
        for case in store.ids():
            truth = load_mask(run.exp.competition, rows[case])
            holds = bool((truth == 1).any())
            shown = truth.copy()
            if fake and not holds:
                for _ in range(3):
                    y, x = generator.integers(0, 80, size=2)
                    shown[0, y : y + 14, x : x + 14] = 1
            values = soft(shown, 2, 0.05, generator)
            store.write(case, values, np.full((1, 1, 1), gate_of(holds, generator), np.float32))


def test_a_planted_threshold_is_found_and_the_nested_score_rises(finished, gated, monkeypatch):
    monkeypatch.setattr("competition.postprocessing.evaluation.MAX_SERIAL_CASES", 99)  # no processes
    run = finished(gated(), "demogate-tiny")
    rewritten(run, lambda holds, draw: draw.uniform(0.45, 0.95) if holds else draw.uniform(0.0, 0.35), fake=True)
    tuned = estimate_score(Ensemble((run,), (1.0,)), 20, workers=1).tuning
    gates = [step.value for step in tuned.best_steps["lesion"] if step.name == "gate"]
    assert tuned.kept and gates == [0.4]  # the one candidate between what full and empty cases have
    assert (
        tuned.presence_gain.low > 0 and 0.2 < tuned.presence_gain.value < 0.37
    )  # from 0 to 1 in a third of the cases, but for a few
    assert tuned.nested > 0.9 and any("step gate:" in line and line.endswith(": used") for line in tuned.report_lines())
    again = estimate_score(Ensemble((run,), (1.0,)), 20, workers=1).tuning  # as the run's folder remembers it
    assert again.presence_gain == tuned.presence_gain and again.settings == tuned.settings
    verdict, score = write_oof_submission(with_steps(run, tuned.settings), Path("oof.csv"))
    assert score == pytest.approx(tuned.after) and verdict.empty == 6


def with_steps(run: Any, settings: PostprocessConfig) -> Any:
    from dataclasses import replace

    return replace(run, exp=run.exp.model_copy(update={"postprocess": settings}))


@pytest.mark.parametrize("fake", [False, True])
def test_a_gate_that_says_nothing_is_left_out(finished, gated, fake):
    run = finished(gated(), "demogate-tiny")
    rewritten(run, lambda holds, draw: draw.uniform(0.0, 1.0), fake=fake)
    tuned = estimate_score(Ensemble((run,), (1.0,)), 20, workers=1).tuning
    assert tuned.presence_gain.low <= 0 and all(step.name != "gate" for step in tuned.best_steps["lesion"])
    assert any("step gate:" in line and line.endswith(": not used") for line in tuned.report_lines())
    without = finished(gated("gate=null"), "demogate-none")
    rewritten(without, lambda holds, draw: draw.uniform(0.0, 1.0), fake=fake)
    bare = estimate_score(Ensemble((without,), (1.0,)), 20, workers=1).tuning
    assert bare.presence_gain is None and (bare.best_steps, bare.nested, bare.kept) == (
        tuned.best_steps,
        tuned.nested,
        tuned.kept,
    )


def test_the_threshold_is_searched_beside_every_triplet_and_alone(gated):
    truths = [TruthSizes(0, ()), *[TruthSizes(400, (200, 200))] * 3]
    plain, both = (
        search_slots(gated(), truths, 96 * 96, False, ())[0],
        search_slots(gated(), truths, 96 * 96, False, (), presence=True)[0],
    )
    assert both.names == ("threshold", "triplet", "gate") and set(plain.options) < set(both.options)
    alone = {steps for steps in both.options if len(steps) == 1 and steps[0].name == "gate"}
    assert len(both.options) == len(plain.options) * (1 + len(alone)) and len(alone) == 10
    own = (StepConfig(gate=0.33),)
    only = search_slots(gated(), truths, 96 * 96, False, own, presence=True)
    assert [slot.names for slot in only] == [("threshold", "triplet", "gate")] and own in only[0].options
    assert all(step.name == "gate" for steps in only[0].options for step in steps)
    full = search_slots(gated(), truths[1:], 96 * 96, False, (), presence=True)[0]
    assert full.names == ("threshold", "triplet")  # no case is empty
    assert step_order(())[:3] == ("threshold", "triplet", "gate")


def test_the_score_of_a_list_with_a_gate_is_that_of_its_masks(finished, gated):
    """The search scores many lists at once; each list alone gives the same score."""
    from competition.metrics.scoring import score_class

    run = finished(gated(), "demogate-tiny")
    rewritten(run, lambda holds, draw: draw.uniform(0.0, 1.0), fake=True)
    lists = tuple(
        (*first, *gate, *last)
        for first in ((), (StepConfig(threshold=0.7),))
        for gate in ((), (StepConfig(gate=0.3),), (StepConfig(gate=0.8),))
        for last in ((), (StepConfig(keep_largest=1),))
    )
    with OofScores(Ensemble((run,), (1.0,)), workers=1) as evaluation:
        evaluation.score({0: lists})
        for case, row in list(evaluation.rows.items())[:6]:
            gate = evaluation.oof.presence(case)
            truth = load_mask(run.exp.competition, row)
            for steps in lists:
                outcome = postprocess(
                    evaluation.oof.read(case), run.exp.competition, PostprocessConfig(steps=list(steps)), row, gate
                )
                wanted = score_class(outcome.masks[0], truth, run.exp.competition, 0, [1.0, 1.0], None, None)
                assert evaluation.scores[0, steps][case]["score"] == pytest.approx(wanted["score"], nan_ok=True), steps
                if any(step.name == "gate" and step.value > gate.item() for step in steps):
                    assert not outcome.masks.any()


def test_a_gate_of_slices_empties_slices(gated):
    comp = gated().competition.model_copy(update={"dimensions": 3})
    probabilities = np.zeros((2, 3, 3, 4), np.float16)
    probabilities[1] = 1
    gate = np.array([0.1, 0.5, 0.9, 0.499], np.float32).reshape(1, 1, 1, 4)
    evidence = CaseProbabilities(probabilities, comp, gate)
    found = run_steps(evidence, 0, (StepConfig(gate=0.5),)).mask
    assert found.any(axis=(0, 1)).tolist() == [False, True, True, False] and found[..., 1:3].all()
    assert drop_passing_gates(evidence, 0, (StepConfig(gate=0.1), StepConfig(open=1))) == (StepConfig(open=1),)
    assert drop_passing_gates(evidence, 0, (StepConfig(gate=0.95), StepConfig(open=1))) is None
    assert (
        drop_passing_gates(evidence, 0, (StepConfig(gate=0.1), StepConfig(gate=0.95))) is None
        and drop_passing_gates(evidence, 0, ()) == ()
    )
    assert drop_passing_gates(evidence, 0, (StepConfig(gate=0.5),)) == (StepConfig(gate=0.5),)
    with pytest.raises(MaskfoldError, match="`gate` requires a presence head"):
        run_steps(CaseProbabilities(probabilities, comp), 0, (StepConfig(gate=0.5),))


def spoken(run: Any, logits: dict[int, float]) -> None:
    """Presence heads that return a constant for every case."""
    for fold, value in logits.items():
        path = run.member_folder(fold, 0) / "weights.safetensors"
        state = load_file(path)
        state["head.1.weight"].zero_()
        state["head.1.bias"].fill_(value)
        save_weights(path, state)


def logit(share: float) -> float:
    return float(np.log(share / (1 - share)))


def test_all_that_predicts_takes_the_gates_together(finished, gated, scans, monkeypatch):
    everything = "{threshold: 0.0}"
    run = finished(gated("postprocess.tune=false", f"postprocess.steps=[{everything}, {{gate: 0.5}}]"), "demogate-tiny")
    rewritten(run, lambda holds, draw: 0.5, fake=False)
    spoken(run, {0: logit(0.9), 1: logit(0.2)})  # together 0.6: odds of 9 and 1/4
    row = next(iter(run.rows().values()))
    ensemble = EnsemblePredictor(Ensemble((run,), (1.0,)), row)
    assert ensemble.predict(row).presence.ravel() == pytest.approx([0.6]) and ensemble.predict(row).presence.shape == (
        1,
        1,
        1,
    )
    with monkeypatch.context() as patch:
        patch.setattr(
            "competition.ensembling.ensemble.MAX_WEIGHT_BYTES_IN_MEMORY", 0
        )  # one network in memory at a time says the same
        assert EnsemblePredictor(Ensemble((run,), (1.0,)), row).predict(row).presence.ravel() == pytest.approx([0.6])
    write_predictor_folder(run, Path("packed"))
    for threshold, empty in ((0.59, 0), (0.61, 3)):
        other = with_steps(run, PostprocessConfig(steps=[StepConfig(threshold=0.0), StepConfig(gate=threshold)]))
        monkeypatch.setattr("competition.postprocessing.evaluation.MAX_SERIAL_CASES", 99)  # no processes
        assert submit([other], output=Path(f"at{threshold}.csv")).validation.empty == empty
        assert pd.read_csv(f"at{threshold}.csv")["predicted"].isna().sum() == empty
        shown = predict_images([other], scans / "test", Path(f"at{threshold}"))
        assert [one.pixels["lesion"] for one in shown] == [0 if empty else 96 * 96] * 3
        predictor = Predictor(Path("packed"))
        predictor.settings = other.exp.postprocess
        assert predictor.predict([np.zeros((96, 96), np.uint8)])[0].any() == (not empty)


def test_runs_with_and_without_a_gate_mix(finished, gated):
    one, two = finished(gated(), "demogate-a"), finished(gated("gate={weight: 0.2}"), "demogate-b")
    none = finished(gated("gate=null"), "demogate-c")
    for run, said in ((one, 0.2), (two, 0.8)):
        rewritten(run, lambda holds, draw, said=said: said, fake=False)
    case = one.cases["id"].iloc[0]
    kept = Ensemble((one, none, two), (0.3, 0.6, 0.1)).out_of_fold()
    assert kept.has_presence and kept.presence(case).item() == pytest.approx(1 / (1 + 2.0))  # odds 4 ** (-0.75 + 0.25)
    assert not Ensemble((one, none), (0.0, 1.0)).out_of_fold().has_presence
    assert (
        not Ensemble((one, none), (0.5, 0.5), {1: (0.0, 1.0)}).out_of_fold().has_presence
    )  # silent on one fold's cases
    fold = one.fold_numbers()[0]
    store = OofStore(one.folder / f"fold_{fold}" / "oof")
    lost = store.ids()[0]
    store.write(lost, store.read(lost))
    with pytest.raises(MaskfoldError, match="presence head"):
        Ensemble((one,), (1.0,)).out_of_fold().presence(lost)


def test_the_seeds_of_a_fold_speak_together(finished, gated):
    run = finished(gated("seed=[1,2]"), "demogate-tiny")
    case = run.cases["id"].iloc[0]
    fold = Ensemble((run,), (1.0,)).out_of_fold().fold_of()[case]
    for seed, said in ((0, 0.2), (1, 0.5)):
        store = OofStore(run.member_folder(fold, seed) / "oof")
        store.write(case, store.read(case), np.full((1, 1, 1), said))
    assert Ensemble((run,), (1.0,)).out_of_fold().presence(case).item() == pytest.approx(1 / 3)  # odds 1/4 and 1
    assert summarize_run(run).cases == 18 and torch.get_num_threads() >= 1


def test_steps_by_hand_with_a_gate_are_scored_with_it(finished, gated):
    run = finished(gated("postprocess.tune=false", "postprocess.steps=[{gate: 0.5}]"), "demogate-tiny")
    rewritten(run, lambda holds, draw: 0.9 if holds else 0.1, fake=True)
    assert estimate_score(Ensemble((run,), (1.0,)), 20, workers=1).score > 0.95
    untouched = with_steps(run, PostprocessConfig())
    assert estimate_score(Ensemble((untouched,), (1.0,)), 20, workers=1).score == pytest.approx(2 / 3, abs=0.03)
    with OofScores(
        Ensemble((with_steps(run, PostprocessConfig(tune=True, steps=[StepConfig(gate=0.95)])),), (1.0,)), workers=1
    ) as evaluation:
        tuned = tune_postprocessing(evaluation, 0, None)
    assert {step.name for step in tuned.best_steps["lesion"]} == {"gate"} and tuned.nested > tuned.before + 0.5
