"""A step is one class: its YAML, its effect, its search, and the same for a user's own step of a trusted package."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from competition.config.competition import PositiveInt
from competition.config.loading import load_experiment, resolve_config, write_yaml
from competition.config.postprocess import OWN_STEPS, STEPS, PostprocessConfig, Step, StepConfig
from competition.ensembling.expected import estimate_score
from competition.errors import MaskfoldError
from competition.postprocessing.case import CaseProbabilities, ClassMask
from competition.postprocessing.evaluation import OofScores
from competition.postprocessing.pipeline import apply_step, postprocess
from competition.postprocessing.steps import SearchContext, TruthSizes
from competition.postprocessing.tuning import load_tuning, search_slots, step_order, tune_postprocessing
from competition.runs.blend import Ensemble
from competition.runs.find import find_run

OWN = '''"""A user's own step."""

from scipy.ndimage import binary_erosion

from competition.config.competition import PositiveInt
from competition.config.postprocess import Step


class Erode(Step):
    """Remove the border of the mask."""

    radius: PositiveInt = 1

    def apply(self, current, case, index):
        return current.restrict(binary_erosion(current.mask, iterations=self.radius))

    @classmethod
    def candidates(cls, search):
        return [cls(radius=radius) for radius in (1, 2, 3)]
'''


class Erode(Step):
    """Remove the border of the mask."""

    value: PositiveInt

    def apply(self, current: ClassMask, case: CaseProbabilities, index: int) -> ClassMask:
        return current.restrict(np.asarray(binary_erosion(current.mask, iterations=self.value)))

    @classmethod
    def candidates(cls, search: SearchContext) -> list[Step]:
        return [cls(value=radius) for radius in (1, 2, 3)]


@pytest.fixture
def shrink() -> Iterator[None]:
    with STEPS.temporary("shrink", Erode):
        yield


@pytest.fixture
def own_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """`own_steps("my_steps")`: the import path of a step in a new module in the working folder."""
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = dict(OWN_STEPS)

    def make(name: str, text: str = OWN) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return f"{name}.Erode"

    yield make
    OWN_STEPS.clear()
    OWN_STEPS.update(before)


def grown(found: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Predictions of the first class that are two pixels too large."""
    spoiled = found.copy()
    larger = binary_dilation(found.argmax(0) == 1, iterations=2)
    spoiled[:, larger] = 0
    spoiled[1, larger] = 1
    return spoiled


# A registered step


@pytest.mark.usefixtures("shrink")
def test_a_registered_step_is_a_key_of_the_yaml(tiny) -> None:
    exp = tiny(2, "postprocess.steps=[{shrink: 2}]")
    (entry,) = exp.postprocess.steps_for("ring")
    assert (entry.name, entry.value, str(entry)) == ("shrink", 2, "shrink 2") and entry == StepConfig(shrink=2)
    assert exp.postprocess.model_dump()["steps"] == [{"shrink": 2}]
    for wrong, expected in (("{shrin: 2}", "nearest: shrink"), ("{shrink: 0}", "steps.0.shrink: expected more than 0")):
        with pytest.raises(MaskfoldError, match=expected):
            tiny(2, f"postprocess.steps=[{wrong}]")


@pytest.mark.usefixtures("shrink")
def test_a_registered_step_changes_the_mask(tiny) -> None:
    values = np.zeros((3, 5, 5), np.float16)
    values[1] = 1
    found = postprocess(values, tiny(2).competition, PostprocessConfig(steps={"ring": [StepConfig(shrink=1)]}))
    assert found.masks[0].sum() == 9 and not found.masks[1].any()


@pytest.mark.usefixtures("shrink")
def test_a_registered_step_is_searched_last_and_in_its_order(tiny) -> None:
    slots = search_slots(tiny(2), [TruthSizes(50, (50,))] * 20, 100, False, ())
    assert slots[-1].names == ("shrink",) and not slots[-1].searched_again
    assert slots[-1].options == ((), *((StepConfig(shrink=radius),) for radius in (1, 2, 3)))
    assert step_order(())[-1] == "shrink" and step_order((StepConfig(shrink=1),))[2] == "shrink"


@pytest.mark.usefixtures("shrink")
def test_a_step_that_gains_is_chosen_and_written(finished, tiny) -> None:
    from competition.submission.submit import submit

    run = finished(tiny(2, "postprocess={tune: true, steps: {ring: [{shrink: 1}]}}"), noise=0.1, spoil=grown)
    done = submit([run])
    tuned = done.expected.tuning
    assert tuned.kept and tuned.nested > tuned.before and tuned.best_steps["ring"] == (StepConfig(shrink=2),)
    summary = json.loads(done.summary_path.read_text())
    assert summary["postprocess"]["steps"]["ring"] == [{"shrink": 2}]
    assert summary["expected"]["tuning"]["found"]["ring"] == [{"shrink": 2}]
    again = load_tuning(run)
    assert again is not None and again.best_steps == tuned.best_steps and again.settings == tuned.settings


def test_a_step_must_return_a_mask(tiny) -> None:
    class Wrong(Erode):
        def apply(self, current, case, index):
            return current.mask

    case = CaseProbabilities(np.ones((3, 4, 4), np.float16), tiny(2).competition)
    with STEPS.temporary("wrong", Wrong), pytest.raises(MaskfoldError, match="The step wrong returned ndarray"):
        apply_step(ClassMask(np.ones((4, 4), bool)), StepConfig(wrong=1), case, 0)


# A user's own step


def test_a_users_step_needs_trust(own_steps, tiny, monkeypatch) -> None:
    target = own_steps("my_untrusted_steps")
    with pytest.raises(MaskfoldError, match="--trust my_untrusted_steps") as caught:
        tiny(2, f"postprocess.steps=[{{open: 1}}, {{target: {target}}}]")
    assert str(caught.value).startswith("command line: postprocess.steps.1.target: ") and caught.value.status == 2
    monkeypatch.setenv("MASKFOLD_TRUST", "my_untrusted_steps")
    entry = tiny(2, f"postprocess.steps=[{{target: {target}}}]").postprocess.steps_for("ring")[0]
    assert entry.step.radius == 1 and entry.is_own and str(entry) == f"{target} radius 1"
    assert pickle.loads(pickle.dumps(entry)) == entry


def test_a_users_step_without_apply_is_refused_before_training(own_steps, tiny, monkeypatch) -> None:
    target = own_steps(
        "my_empty_steps", "from competition.config.postprocess import Step\n\nclass Erode(Step):\n    pass\n"
    )
    monkeypatch.setenv("MASKFOLD_TRUST", "my_empty_steps")
    with pytest.raises(MaskfoldError, match="has no method `apply`") as caught:
        tiny(2, f"postprocess.steps=[{{target: {target}}}]")
    assert caught.value.status == 2


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (
            "{target: my_checked_steps.Erode, args: {radus: 1}}",
            r"steps\.0\.args\.radus is not an argument of Erode.*radius",
        ),
        (
            "{target: my_checked_steps.Erode, args: {radius: 0}}",
            r"steps\.0\.args\.radius: expected more than 0, found 0",
        ),
        ("{target: my_checked_steps.Erod}", r"steps\.0\.target: .* has no Erod.*Erode"),
        ("{target: my_checked_steps.binary_erosion}", r"steps\.0\.target: .* comes from scipy"),
        ("{target: torch.nn.ReLU}", r"steps\.0\.target: .*torch\.nn\.ReLU.* competition Step"),
        ("{target: my_checked_steps.Erode, open: 1}", r"steps\.0: a step must have exactly one key"),
        ("{args: {radius: 1}}", r"steps\.0: a step must have exactly one key"),
    ],
)
def test_a_users_step_is_checked_with_its_key(step: str, expected: str, own_steps, tiny, monkeypatch) -> None:
    own_steps("my_checked_steps")
    monkeypatch.setenv("MASKFOLD_TRUST", "my_checked_steps")
    with pytest.raises(MaskfoldError, match=f"command line: postprocess.{expected}"):
        tiny(2, f"postprocess.steps=[{step}]")


def test_a_finished_runs_step_can_be_read_without_its_code(own_steps, tiny, tmp_path, monkeypatch) -> None:
    target = own_steps("my_read_steps")
    monkeypatch.setenv("MASKFOLD_TRUST", "my_read_steps")
    exp = tiny(2, f"postprocess.steps=[{{target: {target}, args: {{radius: 2}}}}]")
    write_yaml(resolve_config(exp), tmp_path / "saved.yaml")
    assert load_experiment("saved.yaml") == exp
    monkeypatch.delenv("MASKFOLD_TRUST")
    OWN_STEPS.clear()
    read = load_experiment("saved.yaml", trust=None)
    (entry,) = read.postprocess.steps_for("ring")
    assert entry.name == target and resolve_config(read) == resolve_config(exp)
    case = CaseProbabilities(np.ones((3, 4, 4), np.float16), exp.competition)
    with pytest.raises(MaskfoldError, match="--trust my_read_steps"):
        apply_step(ClassMask(np.ones((4, 4), bool)), entry, case, 0)
    with pytest.raises(MaskfoldError, match="saved.yaml, line .*--trust my_read_steps"):
        load_experiment("saved.yaml")


def test_a_users_step_is_searched_in_processes_and_kept_until_its_code_changes(
    own_steps, finished, tiny, monkeypatch
) -> None:
    target = own_steps("my_tuned_steps")
    monkeypatch.setenv("MASKFOLD_TRUST", "my_tuned_steps")
    made = finished(
        tiny(2, f"postprocess={{tune: true, steps: {{ring: [{{target: {target}}}]}}}}"), noise=0.1, spoil=grown
    )
    run = find_run(str(made.folder))
    with OofScores(Ensemble((run,), (1.0,)), workers=2) as evaluation:
        tuned = tune_postprocessing(evaluation, 0, None)
    assert tuned.kept and [step.model_dump() for step in tuned.best_steps["ring"]] == [
        {"target": target, "args": {"radius": 2}}
    ]
    estimate_score(Ensemble((run,), (1.0,)), 3)
    again = load_tuning(run)
    assert again is not None and again.best_steps == tuned.best_steps
    own_steps("my_tuned_steps", OWN + "\n# changed\n")
    assert load_tuning(run) is None
