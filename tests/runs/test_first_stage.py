"""A run with `first_stage` gets the out-of-fold probabilities of another run as further channels."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from competition.cleaning.candidates import _needed_cases
from competition.config.experiment import PseudoLabelConfig
from competition.config.loading import load_experiment, resolve_config, write_yaml
from competition.context import Context
from competition.data.cache import PreprocessedCase
from competition.data.cases import case_rows, case_table
from competition.data.preprocessing import preprocess_case, preprocess_cases
from competition.ensembling.ensemble import EnsemblePredictor, _RunNetworks
from competition.errors import MaskfoldError
from competition.export.bundle import export_runs
from competition.inference.predict import predict_case
from competition.planning.replan import replan
from competition.records import write_json
from competition.runs.blend import Ensemble
from competition.runs.cascade.channels import join_first_stage
from competition.runs.cascade.first_stage import check_same_cases, first_stage_for_prediction
from competition.runs.find import find_run
from competition.runs.fold import RESULT_FILE
from competition.runs.identity.hashing import hashed_settings
from competition.runs.oof import OofStore
from competition.runs.run import load_run
from competition.training.cross_validate import make_jobs, open_run, prepare_run
from competition.training.extra.pseudo_labels import find_teachers
from competition.training.fold import load_run_for_job, run_fold, setup_fold

OWN_GRID = ("prepare.spacing=null", "prepare.orientation=null")  # the grid of the file
CACHE = Path("mlruns/prepared")


@pytest.fixture
def first(finished, tiny):
    """A finished run on the files' own grids, whose predictions are derived from the truth."""
    return finished(tiny(3, *OWN_GRID), "demo3d-first")


def second_run(tiny, first, *overrides):
    return open_run(tiny(3, f"first_stage={first.folder}", *overrides), "demo3d-second")


def joined(run):
    """The cases of a run with the channels of its first stage, by id."""
    folders = join_first_stage(run, preprocess_cases(run.cases, run.exp, CACHE), CACHE)
    return {case: PreprocessedCase.open(folder) for case, folder in folders.items()}


def mark_folds(run):
    """Replace the predictions by constants: those of fold k say 0.1 (k + 1) for each class, everywhere."""
    for fold in run.fold_numbers():
        store = OofStore(run.member_folder(fold, 0) / "oof")
        for case in store.ids():
            values = np.full_like(store.read(case), 0.1 * (fold + 1))
            values[0] = 1 - 0.2 * (fold + 1)
            store.write(case, values)


def new_rows(run):
    """The rows of the test cases."""
    return case_rows(case_table(run.exp.competition, "test"))


# Channels


def test_on_the_same_grid_the_channels_are_the_stored_probabilities(first, tiny):
    run = second_run(tiny, first, *OWN_GRID)
    plain = preprocess_cases(run.cases, run.exp, CACHE)
    for case, prepared in joined(run).items():
        assert prepared.image.shape[0] == 3 and prepared.image.dtype == np.float32
        assert np.array_equal(prepared.image[1:], first.oof().read(case)[1:].astype(np.float32))
        own = PreprocessedCase.open(plain[case])
        assert np.array_equal(prepared.image[:1], own.image) and own.image.shape[0] == 1
        assert np.array_equal(prepared.mask, own.mask) and np.array_equal(prepared.foreground, own.foreground)
        assert np.array_equal(prepared.network_input, prepared.image), "the channels are not normalised"


def test_on_another_grid_the_channels_are_interpolated_linearly(first, tiny):
    run = second_run(tiny, first, "prepare.spacing=[1.5,1.3,2]", "prepare.orientation=RAS")
    for case, prepared in list(joined(run).items())[:4]:
        row = run.rows()[case]
        affine = nibabel.load(Path(run.exp.competition.root) / next(iter(json.loads(row.images).values()))).affine
        for channel, stored in zip(prepared.image[1:], first.oof().read(case)[1:], strict=True):
            upright = nibabel.as_closest_canonical(nibabel.Nifti1Image(stored.astype(np.float32), affine))
            values, zooms = upright.get_fdata(), upright.header.get_zooms()
            expected = [round(n * mm / new) for n, mm, new in zip(values.shape, zooms, (1.5, 1.3, 2), strict=True)]
            assert channel.shape == tuple(expected)
            # the outer edges of both grids coincide
            axes = [(np.arange(new) + 0.5) * n / new - 0.5 for n, new in zip(values.shape, expected, strict=True)]
            points = np.meshgrid(*axes, indexing="ij")
            assert np.abs(channel - map_coordinates(values, points, order=1, mode="nearest")).max() < 1e-5


def test_a_2_5d_network_gets_the_neighbouring_slices_of_the_channels(first, tiny):
    shape = ("patch.size=[16,16]", "patch.slices=3")
    network = ("model.target=competition.models.unet.UNet", "model.args={spatial_dims: 2, channels: [4, 8]}")
    run = prepare_run(second_run(tiny, first, *OWN_GRID, *shape, *network))
    job = replace(make_jobs(run)[0], threads=1)
    job.folder.mkdir()
    trainer = setup_fold(job, run, Context(), 0.0)
    sample = trainer.dataset[(0, 0)]
    assert sample["image"].shape == (9, 16, 16)
    assert trainer.augment.probabilities == 6


# Leaks


def test_each_case_gets_the_prediction_of_the_fold_that_was_not_trained_on_it(first, tiny):
    mark_folds(first)
    run = prepare_run(second_run(tiny, first))
    fold_of = run.fold_of()
    for job in make_jobs(run):
        job.folder.mkdir(exist_ok=True)
        trainer = setup_fold(replace(job, threads=1), load_run_for_job(job), Context(), 0.0)
        training = {PreprocessedCase.open(folder).id for folder in trainer.dataset.folders}
        validation = set(trainer.evaluator.cases["id"])
        assert training and validation and not training & validation
        for case in validation:
            assert fold_of[case] == job.fold and case not in first.training_ids(job.fold)
            channels = PreprocessedCase.open(trainer.evaluator.prepared[case]).image[1:]
            assert np.allclose(channels, 0.1 * (job.fold + 1), atol=1e-3)
        for folder in trainer.dataset.folders:
            prepared = PreprocessedCase.open(folder)
            assert np.allclose(prepared.image[1:], 0.1 * (fold_of[prepared.id] + 1), atol=1e-3)


# The identity of the run


def test_without_the_key_the_hash_covers_what_it_covered(tiny):
    exp = tiny(3)
    assert exp.first_stage is None and "first_stage" not in hashed_settings(exp, 2)
    assert "first_stage" not in hashed_settings(exp, 1)
    named = exp.model_copy(update={"first_stage": "mlruns/runs/demo3d-first/0123456789ab"})
    assert hashed_settings(named, 2) == hashed_settings(exp, 2) | {"first_stage": "demo3d-first/0123456789ab"}


def test_other_predictions_and_other_weights_make_another_run(first, tiny):
    before = second_run(tiny, first).folder.name
    assert second_run(tiny, first).folder.name == before
    assert open_run(tiny(3), "demo3d-second").folder.name != before
    store = OofStore(first.member_folder(0, 0) / "oof")
    case = store.ids()[0]
    values = store.read(case)
    store.write(case, 1 - values)
    other = second_run(tiny, first).folder.name
    assert other != before
    store.write(case, values)
    assert second_run(tiny, first).folder.name == before
    with open(first.member_folder(0, 0) / "weights.safetensors", "ab") as file:
        file.write(b" ")
    assert second_run(tiny, first).folder.name not in (before, other)


def test_a_cached_case_belongs_to_its_predictions(first, tiny):
    run = second_run(tiny, first, *OWN_GRID)
    case = next(iter(first.fold_of()))
    before = joined(run)[case]
    store = OofStore(first.member_folder(first.fold_of()[case], 0) / "oof")
    store.write(case, np.flip(store.read(case), axis=0))
    after = joined(run)[case]
    assert after.folder != before.folder
    assert np.array_equal(after.image[1:], store.read(case)[1:].astype(np.float32))


@pytest.mark.parametrize("what", ["prediction", "weights"])
def test_a_changed_first_stage_is_refused_by_a_started_run(first, tiny, what):
    run = prepare_run(second_run(tiny, first))
    if what == "weights":
        path = first.member_folder(1, 0) / "weights.safetensors"
        path.write_bytes((first.member_folder(0, 0) / "weights.safetensors").read_bytes() + b" ")
    else:
        store = OofStore(first.member_folder(1, 0) / "oof")
        store.write(store.ids()[0], np.zeros_like(store.read(store.ids()[0])))
    with pytest.raises(MaskfoldError, match=f"first_stage: the {what}"):
        load_run_for_job(make_jobs(run)[0])
    if what == "weights":
        with pytest.raises(MaskfoldError, match="first_stage: the weights"):
            EnsemblePredictor(Ensemble((run,), (1.0,)), new_rows(run)[0])


def test_a_damaged_prediction_is_refused(first, tiny):
    run = second_run(tiny, first)
    path = OofStore(first.member_folder(0, 0) / "oof").path(OofStore(first.member_folder(0, 0) / "oof").ids()[0])
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(MaskfoldError, match="damaged"):
        joined(run)


# What is refused


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("seed=77",), "in another fold"),
        (("folds.k=3",), "in another fold"),
        (("folds.scheme=holdout", "folds.shares=[0.6,0.4]"), "in another fold|no fold of the run"),
    ],
)
def test_other_folds_are_refused(first, tiny, overrides, problem):
    run = second_run(tiny, first, *overrides)
    with pytest.raises(MaskfoldError, match=problem) as caught:
        prepare_run(run)
    assert caught.value.status == 2 and not run.folder.exists()


def test_the_folds_of_the_first_run_are_accepted_as_a_file(first, tiny):
    run = second_run(tiny, first, "seed=77", "folds.scheme=file", f"folds.file={first.folder / 'folds.csv'}")
    assert prepare_run(run).fold_of() == first.fold_of()


def test_other_cases_are_refused_in_both_directions(first, finished, tiny):
    left_out = next(iter(first.fold_of()))
    fewer = f"competition.train.exclude=[{left_out}]"
    folds = ("folds.scheme=file", f"folds.file={first.folder / 'folds.csv'}")
    with pytest.raises(MaskfoldError, match="is only in that run") as caught:
        prepare_run(second_run(tiny, first, fewer, *folds))
    assert left_out in str(caught.value) and caught.value.status == 2
    small = finished(tiny(3, *OWN_GRID, fewer), "demo3d-small")
    with pytest.raises(MaskfoldError, match="is not in that run") as caught:
        prepare_run(second_run(tiny, small))
    assert left_out in str(caught.value) and caught.value.status == 2


def test_a_case_that_only_the_second_run_skips_is_no_other_case(first, tiny):
    run = second_run(tiny, first)
    case = next(iter(first.fold_of()))
    check_same_cases(run.without_cases({case: "unreadable"}), first)
    with pytest.raises(MaskfoldError, match="is not in that run"):
        check_same_cases(run, first.without_cases({case: "unreadable"}))


def test_cases_without_an_out_of_fold_prediction_are_refused(finished, tiny):
    shares = ("folds.scheme=holdout", "folds.shares=[0.6,0.4]")
    held_out = finished(tiny(3, *OWN_GRID, *shares), "demo3d-holdout")
    with pytest.raises(MaskfoldError, match="no fold of the run") as caught:
        prepare_run(second_run(tiny, held_out, *shares))
    assert caught.value.status == 2


def test_an_unfinished_run_is_refused(first, tiny):
    (first.member_folder(1, 0) / RESULT_FILE).unlink()
    with pytest.raises(MaskfoldError, match="1 of 2 networks .* fold 1"):
        second_run(tiny, first)


def test_another_competition_is_refused(finished, tiny):
    other = finished(tiny(3, *OWN_GRID, "competition.classes=[liver, kidney]"), "demo3d-other")
    with pytest.raises(MaskfoldError, match="classes") as caught:
        second_run(tiny, other)
    assert caught.value.status == 2


def test_a_run_that_does_not_exist_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MaskfoldError, match="first_stage: .*0123456789ab"):
        open_run(tiny(3, "first_stage=0123456789ab"), "demo3d-second")


@pytest.mark.parametrize(
    ("dimensions", "override", "key"),
    [
        (2, "seed=1", "competition.dimensions"),
        (3, "augment={transforms: [{target: monai.transforms.RandGaussianNoised}]}", "augment.transforms"),
        (3, "pseudo.from=0123456789ab", "pseudo"),
    ],
)
def test_settings_that_a_first_stage_does_not_support_are_refused(tiny, dimensions, override, key):
    with pytest.raises(MaskfoldError, match=f"first_stage.*{key}") as caught:
        tiny(dimensions, "first_stage=0123456789ab", override)
    assert caught.value.status == 2


def test_export_teaching_and_a_plan_are_refused_before_any_work(first, tiny, tmp_path):
    run = prepare_run(second_run(tiny, first))
    with pytest.raises(MaskfoldError, match="cannot be exported.*first_stage") as caught:
        export_runs([run], tmp_path / "bundle")
    assert caught.value.status == 2 and not (tmp_path / "bundle").exists()
    student = open_run(tiny(3), "demo3d-student")
    taught = replace(
        student,
        exp=student.exp.model_copy(update={"pseudo": PseudoLabelConfig.model_validate({"from": str(run.folder)})}),
    )
    with pytest.raises(MaskfoldError, match="cannot teach .*first_stage") as caught:
        find_teachers(taught, make_jobs(student)[0])
    assert caught.value.status == 2
    write_yaml(resolve_config(run.exp), tmp_path / "cascade.yaml")

    def unread(exp):
        raise AssertionError("the refusal comes before any work")

    with pytest.raises(MaskfoldError, match="first_stage") as caught:
        replan(tmp_path / "cascade.yaml", (), 1.0, (), unread, print)
    assert caught.value.status == 2


# From training to new cases


def test_a_cascade_trains_resumes_and_predicts_new_cases_with_both_stages(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = prepare_run(open_run(tiny(3, "prepare.spacing=[2.5,2.5,4]", "training.epochs=1"), "demo3d-first"))
    for job in make_jobs(first):
        job.folder.mkdir()
        run_fold(replace(job, threads=1))
    run = prepare_run(second_run(tiny, first, "training.epochs=1"))
    for job in make_jobs(run):
        job.folder.mkdir()
        run_fold(replace(job, threads=1))
    run = find_run(f"demo3d-second/{run.folder.name}")
    assert sorted(run.oof().fold_of) == sorted(first.fold_of())
    assert prepare_run(second_run(tiny, first, "training.epochs=1")).folder == run.folder, "resume"
    shutil.copytree(first.member_folder(0, 0), first.folder / "full")  # a later fit on all cases does not take part
    result = json.loads((first.folder / "full" / RESULT_FILE).read_text())
    result.pop("digests")
    write_json(first.folder / "full" / RESULT_FILE, result | {"fold": -1})

    row = new_rows(run)[0]
    found = EnsemblePredictor(Ensemble((run,), (1.0,)), row).probabilities(row)
    coarse = PreprocessedCase.open(preprocess_case(row, first.exp, tmp_path / "coarse"))
    members = [(fold, 0) for fold in first.fold_numbers()]
    stage = predict_case(list(first.networks(1, members=members)), coarse, first.exp)
    fine = PreprocessedCase.open(preprocess_case(row, run.exp, tmp_path / "fine"))
    image = np.concatenate([fine.image, fine.geometry.forward(stage[1:], order=1)])
    expected = predict_case(list(run.networks(3)), _Joined(fine, image), run.exp)
    assert np.array_equal(found, expected)
    wrong = predict_case(list(run.networks(3)), _Joined(fine, np.zeros_like(image)), run.exp)
    assert not np.array_equal(found, wrong)


class _Joined:
    """A preprocessed case with another network input."""

    def __init__(self, case, image):
        self.id, self.geometry, self.network_input = case.id, case.geometry, image


def test_a_moved_first_stage_is_named_on_the_command_line(first, tiny):
    run = prepare_run(second_run(tiny, first))
    first.folder.rename("elsewhere")
    row = new_rows(run)[0]
    with pytest.raises(MaskfoldError, match="does not exist") as caught:
        EnsemblePredictor(Ensemble((load_run(run.folder),), (1.0,)), row)
    assert "first_stage=FOLDER" in caught.value.hint
    moved = load_run(run.folder, overrides=["first_stage=elsewhere"])
    assert first_stage_for_prediction(moved).fold_of() == first.fold_of()


def test_clean_keeps_the_prepared_cases_with_channels(first, tiny):
    run = second_run(tiny, first)
    run.write()
    assert _needed_cases([run])[1] == set(run.cases["id"]) and _needed_cases([first])[1] == set()


def test_a_loaded_run_keeps_its_first_stage(first, tiny):
    run = prepare_run(second_run(tiny, first))
    assert load_run(run.folder).exp.first_stage == str(first.folder)
    assert load_experiment(run.folder / "experiment.yaml").first_stage_channels == 2


def test_the_number_of_channels_is_that_of_the_image_without_the_first_stage():
    networks = object.__new__(_RunNetworks)
    networks.run = SimpleNamespace(exp=SimpleNamespace(first_stage_channels=2))
    networks.channels = 3
    case = SimpleNamespace(id="c1", image=np.zeros((5, 2, 2, 2)))
    with pytest.raises(MaskfoldError, match="Case c1 has 3 channels, expected 1, as in training") as caught:
        networks.predict(case)
    assert "Use images with 1 channel." in caught.value.hint
