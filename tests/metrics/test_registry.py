"""Metrics by name and by import path: what a metric receives, empty masks, errors in the YAML, and the run's hash."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from competition.config.competition import Competition, MetricConfig
from competition.config.instantiate import check_targets
from competition.config.loading import load_competition, load_experiment, resolve_config, resolve_for_prediction
from competition.config.metric import METRICS, Direction, Metric, metric
from competition.config.registry import Registry
from competition.context import Context
from competition.ensembling.expected import estimate_score
from competition.errors import MaskfoldError
from competition.export.requirements import required_files
from competition.metrics.baseline import score_threshold_baseline
from competition.metrics.scoring import score_case
from competition.metrics.surface import hd95
from competition.postprocessing.tuning import load_tuning
from competition.runs.blend import Ensemble
from competition.runs.identity.hashing import run_hash
from competition.training.cross_validate import make_jobs, open_run, prepare_run
from competition.training.fold import run_fold
from tests.conftest import ROOT
from tests.distance import DISTANCE, distance  # noqa: F401 (a fixture)

BUILT_IN = [
    "assd",
    "betti_error",
    "cl_dice",
    "dice",
    "f2_iou",
    "fbeta",
    "hd95",
    "iou",
    "lesion_dice",
    "lesion_f1",
    "mean_ap",
    "nsd",
    "panoptic_quality",
    "surface_dice",
    "tgs_ap",
    "uw_madison",
    "voi",
    "voi_score",
]
LOWER = {"assd", "betti_error", "hd95", "voi"}
OWN = """
import numpy as np
from competition.metrics import metric

@metric(higher_is_better=False)
def area_error(mask, truth, spacing, weight=1.0):
    return weight * abs(int(mask.sum()) - int(truth.sum())) * float(np.prod(spacing))

class Shift:
    higher_is_better = False

    def __init__(self, power):
        self.power = power

    def __call__(self, tp, fp, fn):
        return float(fp + fn) ** self.power

def plain(mask, truth):
    return 0.5

@metric(higher_is_better=True, pooled_share=0.5)
def pooled(mask, truth):
    return 0.5
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The module `own_metric` in the working folder."""
    monkeypatch.delenv("MASKFOLD_TRUST", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_metric.py").write_text(OWN)
    yield tmp_path
    sys.modules.pop("own_metric", None)


def comp(**section) -> Competition:
    return Competition(
        name="x",
        root=Path(),
        dimensions=2,
        classes=["a"],
        train={"images": "{id}.png", "masks": "{id}.png"},
        metric=MetricConfig(**section),
    )


def scored(section: dict, mask, truth, **more) -> float:
    mask, truth = np.asarray(mask, bool), np.asarray(truth, np.uint8)
    return score_case(mask[None], truth[None], comp(**section), **more)[0]["score"]


SQUARE, EMPTY = np.pad(np.ones((2, 2)), 3), np.zeros((8, 8))


# The registry


def test_the_first_lookup_finds_the_modules_of_the_package():
    assert METRICS.names() == BUILT_IN
    assert {name for name in BUILT_IN if METRICS.get(name).direction is Direction.LOWER} == LOWER
    assert [name for name in BUILT_IN if METRICS.get(name).from_counts] == ["dice", "fbeta", "iou"]
    code = "import competition.config.loading, sys; print([m for m in sys.modules if m.startswith('competition.metr')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]", "reading a YAML schema must not import the metrics"


def test_a_new_file_in_the_package_is_enough(tmp_path, monkeypatch):
    package = tmp_path / "some_metrics"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry: Registry[int] = Registry("metric", "some_metrics")
    monkeypatch.setattr("competition.config.metric.METRICS", registry)
    (package / "edge.py").write_text(
        "from competition.config.metric import metric\n"
        "@metric('edge', higher_is_better=False)\ndef far(mask, truth): return 1.0\n"
    )
    assert registry.names() == ["edge"] and registry.get("edge").direction is Direction.LOWER
    with pytest.raises(ValueError, match="two entries have the metric name 'edge'"):
        registry.add("edge", registry.get("edge"))


def test_a_function_of_another_package_is_not_registered():
    @metric("elsewhere", higher_is_better=False)
    def elsewhere(mask, truth):
        return 0.0

    assert "elsewhere" not in METRICS.names() and elsewhere.higher_is_better is False


def test_an_added_metric_ends_with_its_block(distance):  # noqa: F811 (the fixture)
    assert METRICS.get("border_distance") is distance
    with METRICS.temporary("other", distance):
        assert "other" in METRICS.names()
    assert "other" not in METRICS.names()


# Scores


def test_a_metric_receives_the_inputs_that_its_parameters_name():
    seen = {}

    def everything(mask, truth, spacing, tp, fp, fn, predicted_objects, true_objects, beta, tolerance_mm, extra=7):
        seen.update(locals())
        return 1.25

    with METRICS.temporary("everything", Metric("everything", everything, Direction.LOWER)):
        section = {"name": "everything", "beta": 2.0, "tolerance_mm": 0.5, "args": {"extra": 9}}
        two = np.pad(np.ones((2, 2)), ((0, 6), (0, 6))) + SQUARE.astype(bool)[:8, :8]
        assert scored(section, two > 0, SQUARE, spacing=[2.0, 3.0]) == 1.25
    assert (seen["tp"], seen["fp"], seen["fn"]) == (4, 4, 0)
    assert (seen["beta"], seen["tolerance_mm"], seen["extra"]) == (2.0, 0.5, 9)
    assert seen["spacing"] == [2.0, 3.0] and seen["truth"].dtype == bool
    assert (seen["predicted_objects"].max(), seen["true_objects"].max()) == (2, 1)


def test_empty_masks_of_a_distance(distance):  # noqa: F811
    section = {"name": "border_distance"}
    assert comp(**section).metric.both_empty == 0.0
    assert scored(section, EMPTY, EMPTY) == 0.0
    assert scored({**section, "both_empty": 3.0}, EMPTY, EMPTY) == 3.0
    assert np.isnan(scored({**section, "both_empty": None}, EMPTY, EMPTY))
    diagonal = 8 * 2**0.5
    assert scored(section, EMPTY, SQUARE) == scored(section, SQUARE, EMPTY) == pytest.approx(diagonal)
    assert scored(section, SQUARE, SQUARE) == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_undefined_score_of_a_mask_that_is_not_empty_is_an_error(value):
    with METRICS.temporary("undefined", Metric("undefined", lambda mask, truth: value, Direction.LOWER)):
        with pytest.raises(MaskfoldError, match="undefined of the class a is (nan|inf).* 0 pixels.* 4"):
            scored({"name": "undefined"}, EMPTY, SQUARE)
        assert scored({"name": "undefined"}, EMPTY, EMPTY) == 0.0, "the function is not called"


def test_the_dice_of_a_threshold_has_no_score_of_a_distance(distance):  # noqa: F811
    image, truth = SQUARE[None].astype(np.float32), SQUARE[None].astype(np.uint8)
    cases = [(image, truth), (0 * image, 0 * truth)]
    scores = [
        list(score_threshold_baseline(iter(cases), comp(**section)).values())
        for section in ({"name": "border_distance"}, {"name": "dice"})
    ]
    assert scores[0] == scores[1]
    assert scores[0][0] == 1.0


def test_the_example_of_the_contributors_guide(tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (code,) = (
        block.partition("```")[0] for block in text.split("```python\n")[1:] if '@metric("boundary_distance"' in block
    )
    names: dict = {"__name__": "example"}
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    found = Metric.from_declaration(names["boundary_distance"], "boundary_distance").bind({"percentile": 95.0}, {})
    assert found.direction is Direction.LOWER and set(found.inputs) == {"mask", "truth", "spacing"}
    generator = np.random.default_rng(0)
    for shape, spacing in (((20, 30), (1.0, 2.0)), ((8, 9, 10), (3.0, 1.0, 1.5))):
        masks = [gaussian_filter(generator.normal(size=shape), 1.5) > 0 for _ in range(2)]
        for mask, truth in (masks, masks[::-1], (masks[0], np.zeros(shape, bool))):
            assert found(mask=mask, truth=truth, spacing=spacing) == pytest.approx(hd95(mask, truth, spacing))


# The YAML


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{name: surface_dic}", ["competition.yaml, line 5", "metric.name", "dice, f2_iou", "nearest: surface_dice"]),
        ("{name: 5}", ["competition.yaml, line 5", "metric.name", "expected text"]),
        ("{name: mean_ap, average: global}", ["competition.yaml, line 5", "dice, fbeta, iou, lesion_dice", "mean_ap"]),
        ("{name: dice, args: {beta: 2.0}}", ["metric.args.beta", "set `metric.beta`"]),
        ("{name: dice, args: {smooth: 2.0}}", ["args.smooth", "not a setting of the metric dice", "no settings"]),
    ],
)
def test_an_invalid_section_names_file_line_and_key(tmp_path, section, words):
    (tmp_path / "competition.yaml").write_text(
        f"name: x\nroot: .\ndimensions: 2\nclasses: [a]\nmetric: {section}\n"
        "train: {images: 'a{id}', masks: 'b{id}'}\n"
    )
    with pytest.raises(MaskfoldError) as error:
        load_competition(tmp_path / "competition.yaml")
    assert error.value.status == 2
    for word in words:
        assert word in str(error.value), str(error.value)


HASHES = {  # of version 0.1, before metrics had a registry
    "{name: dice}": "b6ced32188b4",
    "{name: mean_ap}": "56793e65845f",
    "{name: surface_dice, tolerance_mm: 2.0, both_empty: null}": "b91a3a87ab58",
    "{name: fbeta, beta: 0.5, average: global}": "ff4d0524bf46",
}


def demo(*overrides: str, trust: tuple[str, ...] | None = ()):
    fixed = ["competition.root=/x", "encoder_weights=null"]
    return load_experiment(ROOT / "experiments" / "demo2d" / "unet2d.yaml", [*fixed, *overrides], trust)


@pytest.mark.parametrize("section", HASHES)
def test_a_metric_of_the_package_keeps_the_hash_of_its_runs(section):
    exp = demo(f"competition.metric={section}")
    assert run_hash(exp, "data") == HASHES[section]
    assert list(exp.competition.metric.model_dump()) == ["name", "average", "both_empty", "beta", "tolerance_mm"]


def test_the_import_path_and_the_settings_of_an_own_metric_are_in_the_hash(own):
    sections = [
        "{target: own_metric.area_error}",
        "{target: own_metric.area_error, args: {weight: 2.0}}",
        "{target: own_metric.Shift, args: {power: 2.0}}",
    ]
    found = {run_hash(demo(f"competition.metric={section}", trust=("own_metric",)), "data") for section in sections}
    assert len(found) == 3
    # The same metric for someone who trusts more packages is the same run.
    exp = demo(f"competition.metric={sections[0]}", trust=("own_metric", "other"))
    assert run_hash(exp, "data") in found


# The user's own metric


def test_an_own_metric_is_a_function_or_a_class(own):
    section = "{target: own_metric.area_error, args: {weight: 3.0}}"
    exp = demo(f"competition.metric={section}", trust=("own_metric",))
    config = exp.competition.metric
    assert (config.name, config.both_empty, config.direction) == ("area_error", None, Direction.LOWER)
    assert config.label == "area_error, lower is better"
    assert config.resolve()(mask=SQUARE, truth=EMPTY, spacing=[1.0, 2.0]) == 3 * 4 * 2
    assert pickle.loads(pickle.dumps(exp)).competition.metric.direction is Direction.LOWER  # as worker processes get it
    check_targets(exp, ("own_metric",))
    shift = demo("competition.metric={target: own_metric.Shift, args: {power: 2.0}}", trust=("own_metric",))
    assert shift.competition.metric.resolve()(tp=1, fp=2, fn=1) == 9.0
    untrusted = load_experiment_again(own, exp)
    assert untrusted.competition.metric == config and resolve_config(untrusted) == resolve_config(exp)


def load_experiment_again(folder: Path, exp):
    from competition.config.loading import write_yaml

    write_yaml(resolve_config(exp), folder / "again.yaml")
    return load_experiment(folder / "again.yaml", trust=None)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{target: own_metric.plain}", ["plain does not state whether higher", "higher_is_better"]),
        ("{target: own_metric.area_eror}", ["own_metric has no area_eror", "area_error"]),
        ("{target: own_metric.area_error, args: {wieght: 1}}", ["args.wieght", "did you mean weight"]),
        ("{target: own_metric.Shift}", ["args.power", "missing"]),
        ("{target: own_metric.area_error, average: global}", ["average: global", "area_error"]),
        ("{sum: [{name: dice}, {target: own_metric.area_error}]}", ["sum", "a worse area_error", "negative weight"]),
        ("{target: own_metric.pooled}", ["pooled_share=0.5", "competition/metrics"]),
    ],
)
def test_an_own_metric_is_checked_before_the_run(own, section, words):
    exp = demo(f"competition.metric={section}", trust=("own_metric",))
    with pytest.raises(MaskfoldError) as error:
        check_targets(exp, ("own_metric",))
    assert error.value.status == 2 and "competition.metric" in str(error.value)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_an_own_metric_is_imported_only_with_trust(own):
    with pytest.raises(MaskfoldError, match=r"competition.metric.target.*not in a trusted package.*--trust own_metric"):
        demo("competition.metric={target: own_metric.area_error}")
    unchecked = demo("competition.metric={target: own_metric.area_error}", trust=None)
    with pytest.raises(MaskfoldError, match="not in a trusted package"):
        _ = unchecked.competition.metric.direction
    assert "own_metric" not in sys.modules
    with pytest.raises(MaskfoldError, match="does not state whether higher"):
        demo("competition.metric={target: torch.nn.functional.mse_loss}").competition.metric.resolve()


def test_prediction_does_not_need_the_metric(own):
    exp = demo("competition.metric={target: own_metric.area_error}", trust=("own_metric",))
    assert "metric" not in resolve_for_prediction(exp)["competition"]
    assert resolve_for_prediction(demo()) == resolve_config(demo())
    files = {path.as_posix() for path in required_files(["monai.networks.nets.UNet"])[0]}
    assert {f"metrics/{path.name}" for path in (ROOT / "competition" / "metrics").glob("*.py")} <= files


def test_a_fold_imports_an_own_metric_with_the_trust_of_its_job(own, tiny):
    settings = ("training.epochs=1", "training.steps_per_epoch=1", "run.threads=1", "inference.tta=[]")
    section = "competition.metric={target: own_metric.area_error, args: {weight: 2.0}}"
    exp = tiny(2, section, *settings, trust=("own_metric",))
    run = prepare_run(open_run(exp, "tiny"), Context(("own_metric",)))
    job = make_jobs(run, Context(("own_metric",)))[0]
    job.folder.mkdir(parents=True, exist_ok=True)
    result = run_fold(job, lambda _: None)
    scores = pd.read_csv(job.folder / "scores.csv")
    assert result.score == pytest.approx(scores["score"].mean())
    assert scores["score"].tolist() == (2 * (scores["fp"] - scores["fn"]).abs()).tolist()


def test_processes_that_score_predictions_import_an_own_metric(own, finished, tiny, monkeypatch):
    monkeypatch.syspath_prepend(own)  # `finished` makes the run in another working folder
    exp = tiny(2, "competition.metric={target: own_metric.area_error}", "postprocess.tune=true", trust=("own_metric",))
    run = finished(exp, noise=0.3)
    monkeypatch.setattr("competition.postprocessing.evaluation.MAX_SERIAL_CASES", 0)
    tuned = estimate_score(Ensemble((run,), (1.0,)), 20, workers=2).tuning
    assert tuned.after <= tuned.before == pytest.approx(json.loads((run.folder / "summary.json").read_text())["score"])
    key = json.loads((run.folder / "postprocess.json").read_text())["key"]
    assert key["metric"]["target"] == "own_metric.area_error" and load_tuning(run) is not None


def test_the_override_of_the_tests_selects_a_distance(distance, tiny):  # noqa: F811
    assert tiny(2, DISTANCE).competition.metric.direction is Direction.LOWER
