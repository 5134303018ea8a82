"""The gate among the steps: found with the rule that makes the mask, left out where it does not help, used by all that predicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from competition.config import MaskfoldError, load_experiment
from competition.config.postprocess import Postprocess, Step
from competition.data.demo import make_demo
from competition.data.table import load_mask
from competition.inference.store import OofStore
from competition.submission.blend import Blend
from competition.submission.candidates import order_of, slots
from competition.submission.evaluate import Evaluation, Truth
from competition.submission.expected import expect
from competition.submission.folder import predict_images
from competition.submission.members import Ensemble, plain_rows
from competition.submission.model import pack
from competition.submission.postprocess import Evidence, beside_gates, postprocess, run_steps
from competition.submission.predictor import Predictor
from competition.submission.submit import submit, write_out_of_fold
from competition.submission.tune import tune
from competition.training.checkpoint import save_weights
from competition.training.cv import summarise
from tests.conftest import ROOT, TINY
from tests.submission.conftest import soft


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gate's demo: 18 training and 3 test scans, every third without lesions."""
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
    """The run's out-of-fold predictions again, with a gate, and with fake lesions in the empty cases."""
    generator = np.random.default_rng(7)
    rows = {row.id: row for row in run.cases.itertuples(index=False)}
    for fold in run.numbers():
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
    monkeypatch.setattr("competition.submission.crew.FEW", 99)  # no processes
    run = finished(gated(), "demogate-tiny")
    rewritten(run, lambda holds, draw: draw.uniform(0.45, 0.95) if holds else draw.uniform(0.0, 0.35), fake=True)
    tuned = expect(Blend((run,), (1.0,)), 20, workers=1).tuned
    gates = [step.gate for step in tuned.found["lesion"] if step.gate is not None]
    assert tuned.kept and gates == [0.4]  # the one candidate between what full and empty cases have
    assert tuned.gate.low > 0 and 0.2 < tuned.gate.value < 0.37  # from 0 to 1 in a third of the cases, but for a few
    assert tuned.nested > 0.9 and any("the gate:" in line and "used" in line for line in tuned.lines())
    again = expect(Blend((run,), (1.0,)), 20, workers=1).tuned  # as the run's folder remembers it
    assert again.gate == tuned.gate and again.settings == tuned.settings
    verdict, score = write_out_of_fold(with_steps(run, tuned.settings), Path("oof.csv"))
    assert score == pytest.approx(tuned.after) and verdict.empty == 6


def with_steps(run: Any, settings: Postprocess) -> Any:
    from dataclasses import replace

    return replace(run, exp=run.exp.model_copy(update={"postprocess": settings}))


@pytest.mark.parametrize("fake", [False, True])
def test_a_gate_that_says_nothing_is_left_out(finished, gated, fake):
    run = finished(gated(), "demogate-tiny")
    rewritten(run, lambda holds, draw: draw.uniform(0.0, 1.0), fake=fake)
    tuned = expect(Blend((run,), (1.0,)), 20, workers=1).tuned
    assert tuned.gate.low <= 0 and not any(step.gate is not None for step in tuned.found["lesion"])
    assert any("the gate:" in line and "left out" in line for line in tuned.lines())
    without = finished(gated("gate=null"), "demogate-none")
    rewritten(without, lambda holds, draw: draw.uniform(0.0, 1.0), fake=fake)
    bare = expect(Blend((without,), (1.0,)), 20, workers=1).tuned
    assert bare.gate is None and (bare.found, bare.nested, bare.kept) == (tuned.found, tuned.nested, tuned.kept)


def test_the_threshold_is_searched_beside_every_triplet_and_alone(gated):
    truths = [Truth(0, ()), *[Truth(400, (200, 200))] * 3]
    plain, both = (
        slots(gated(), truths, 96 * 96, False, ())[0],
        slots(gated(), truths, 96 * 96, False, (), gate=True)[0],
    )
    assert both.names == ("threshold", "triplet", "gate") and set(plain.options) < set(both.options)
    alone = {steps for steps in both.options if len(steps) == 1 and steps[0].name == "gate"}
    assert len(both.options) == len(plain.options) * (1 + len(alone)) and len(alone) == 10
    own = (Step(gate=0.33),)
    only = slots(gated(), truths, 96 * 96, False, own, gate=True)
    assert [slot.names for slot in only] == [("threshold", "triplet", "gate")] and own in only[0].options
    assert all(step.name == "gate" for steps in only[0].options for step in steps)
    full = slots(gated(), truths[1:], 96 * 96, False, (), gate=True)[0]
    assert full.names == ("threshold", "triplet")  # no case is empty
    assert order_of(())[:3] == ("threshold", "triplet", "gate")


def test_the_score_of_a_list_with_a_gate_is_that_of_its_masks(finished, gated):
    """The search scores many lists at once; each by itself gives the same."""
    from competition.scoring.cases import score_class

    run = finished(gated(), "demogate-tiny")
    rewritten(run, lambda holds, draw: draw.uniform(0.0, 1.0), fake=True)
    lists = tuple(
        (*first, *gate, *last)
        for first in ((), (Step(threshold=0.7),))
        for gate in ((), (Step(gate=0.3),), (Step(gate=0.8),))
        for last in ((), (Step(keep_largest=1),))
    )
    with Evaluation(Blend((run,), (1.0,)), workers=1) as evaluation:
        evaluation.score({0: lists})
        for case, row in list(evaluation.rows.items())[:6]:
            gate = evaluation.kept.gate(case)
            truth = load_mask(run.exp.competition, row)
            for steps in lists:
                outcome = postprocess(
                    evaluation.kept.read(case), run.exp.competition, Postprocess(steps=list(steps)), row, gate
                )
                wanted = score_class(outcome.masks[0], truth, run.exp.competition, 0, [1.0, 1.0], None, None)
                assert evaluation.known[0, steps][case]["score"] == pytest.approx(wanted["score"], nan_ok=True), steps
                if any(step.gate is not None and step.gate > gate.item() for step in steps):
                    assert not outcome.masks.any()


def test_a_gate_of_slices_empties_slices(gated):
    comp = gated().competition.model_copy(update={"dimensions": 3})
    probabilities = np.zeros((2, 3, 3, 4), np.float16)
    probabilities[1] = 1
    gate = np.array([0.1, 0.5, 0.9, 0.499], np.float32).reshape(1, 1, 1, 4)
    evidence = Evidence(probabilities, comp, gate)
    found = run_steps(evidence, 0, (Step(gate=0.5),)).mask
    assert found.any(axis=(0, 1)).tolist() == [False, True, True, False] and found[..., 1:3].all()
    assert beside_gates(evidence, 0, (Step(gate=0.1), Step(open=1))) == (Step(open=1),)
    assert beside_gates(evidence, 0, (Step(gate=0.95), Step(open=1))) is None
    assert beside_gates(evidence, 0, (Step(gate=0.1), Step(gate=0.95))) is None and beside_gates(evidence, 0, ()) == ()
    assert beside_gates(evidence, 0, (Step(gate=0.5),)) == (Step(gate=0.5),)
    with pytest.raises(MaskfoldError, match="without a gate"):
        run_steps(Evidence(probabilities, comp), 0, (Step(gate=0.5),))


def spoken(run: Any, logits: dict[int, float]) -> None:
    """Gates that say one thing of every case, whatever they see."""
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
    row = plain_rows(run.cases)[0]
    ensemble = Ensemble(Blend((run,), (1.0,)), row)
    assert ensemble.predict(row).gate.ravel() == pytest.approx([0.6]) and ensemble.predict(row).gate.shape == (1, 1, 1)
    with monkeypatch.context() as patch:
        patch.setattr("competition.submission.members.KEPT_BYTES", 0)  # one network in memory at a time says the same
        assert Ensemble(Blend((run,), (1.0,)), row).predict(row).gate.ravel() == pytest.approx([0.6])
    pack(run, Path("packed"))
    for threshold, empty in ((0.59, 0), (0.61, 3)):
        other = with_steps(run, Postprocess(steps=[Step(threshold=0.0), Step(gate=threshold)]))
        monkeypatch.setattr("competition.submission.crew.FEW", 99)  # no processes
        assert submit([other], output=Path(f"at{threshold}.csv")).verdict.empty == empty
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
    kept = Blend((one, none, two), (0.3, 0.6, 0.1)).out_of_fold()
    assert kept.gated and kept.gate(case).item() == pytest.approx(1 / (1 + 2.0))  # odds 4 ** (-0.75 + 0.25)
    assert not Blend((one, none), (0.0, 1.0)).out_of_fold().gated
    assert not Blend((one, none), (0.5, 0.5), {1: (0.0, 1.0)}).out_of_fold().gated  # silent on one fold's cases
    fold = one.numbers()[0]
    store = OofStore(one.folder / f"fold_{fold}" / "oof")
    lost = store.ids()[0]
    store.write(lost, store.read(lost))
    with pytest.raises(MaskfoldError, match="has no gate"):
        Blend((one,), (1.0,)).out_of_fold().gate(lost)


def test_the_seeds_of_a_fold_speak_together(finished, gated):
    run = finished(gated("seed=[1,2]"), "demogate-tiny")
    case = run.cases["id"].iloc[0]
    fold = Blend((run,), (1.0,)).out_of_fold().fold_of()[case]
    for seed, said in ((0, 0.2), (1, 0.5)):
        store = OofStore(run.member_folder(fold, seed) / "oof")
        store.write(case, store.read(case), np.full((1, 1, 1), said))
    assert Blend((run,), (1.0,)).out_of_fold().gate(case).item() == pytest.approx(1 / 3)  # odds 1/4 and 1
    assert summarise(run).cases == 18 and torch.get_num_threads() >= 1


def test_steps_by_hand_with_a_gate_are_scored_with_it(finished, gated):
    run = finished(gated("postprocess.tune=false", "postprocess.steps=[{gate: 0.5}]"), "demogate-tiny")
    rewritten(run, lambda holds, draw: 0.9 if holds else 0.1, fake=True)
    assert expect(Blend((run,), (1.0,)), 20, workers=1).score > 0.95
    untouched = with_steps(run, Postprocess())
    assert expect(Blend((untouched,), (1.0,)), 20, workers=1).score == pytest.approx(2 / 3, abs=0.03)
    with Evaluation(
        Blend((with_steps(run, Postprocess(tune=True, steps=[Step(gate=0.95)])),), (1.0,)), workers=1
    ) as evaluation:
        tuned = tune(evaluation, 0, None)
    assert {step.name for step in tuned.found["lesion"]} == {"gate"} and tuned.nested > tuned.before + 0.5
