"""Vertebrae get their classes by their order, whatever the network's labels are."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from competition.config.competition import Competition
from competition.config.experiment import Experiment
from competition.config.postprocess import LabelOrdering, PostprocessConfig, StepConfig
from competition.ensembling.ensemble import InMemoryCase
from competition.errors import MaskfoldError
from competition.metrics.instances import connected_components
from competition.postprocessing.ordering import case_affine, relabel_by_order, split_touching
from competition.postprocessing.pipeline import postprocess

NAMES = ["L1", "L2", "L3", "L4", "L5"]
IDENTITY = np.eye(4)  # RAS: the last axis rises towards the head


def competition(labels: str = "exclusive", classes: list[str] = NAMES) -> Competition:
    return Competition.model_validate(
        {
            "name": "spine",
            "root": ".",
            "dimensions": 3,
            "classes": classes,
            "labels": labels,
            "train": {"images": "{id}.nii.gz", "masks": "{id}_m.nii.gz"},
        }
    )


def column(count: int, gap: int = 3, size: tuple[int, int, int] = (12, 10, 8)) -> np.ndarray:
    """Return (*spatial) int: objects 1…count from the top of the last axis down, each a block with a thin tail."""
    wide, deep, high = size
    pitch = high + gap
    objects = np.zeros((wide + 8, deep + 14, count * pitch + gap), int)
    for number in range(1, count + 1):
        top = objects.shape[2] - gap - (number - 1) * pitch
        objects[4 : 4 + wide, 8 : 8 + deep, top - high : top] = number
        objects[4 + wide // 2 - 1 : 4 + wide // 2 + 1, 2:8, top - high + 1 : top - high + 4] = number
    return objects


def said(objects: np.ndarray, names: dict[int, int], classes: int = 5, sure: float = 0.9) -> np.ndarray:
    """Return (1 + classes, *spatial) float16: object o has class names[o], from 0, with the given probability."""
    found = np.full((1 + classes, *objects.shape), (1 - sure) / classes, np.float32)
    found[0][objects == 0] = sure
    for number, name in names.items():
        found[1 + name][objects == number] = sure
    return found.astype(np.float16)


def names_of(probabilities: np.ndarray, objects: np.ndarray) -> dict[int, list[int]]:
    """Return the classes (0: background) of each object's voxels by argmax."""
    labels = probabilities.argmax(axis=0)
    return {int(number): np.unique(labels[objects == number]).tolist() for number in np.unique(objects[objects > 0])}


def rule(along: str = "S", **more: Any) -> LabelOrdering:
    return LabelOrdering.model_validate({"along": along, "classes": NAMES, **more})


IN_ORDER = {number: [number] for number in range(1, 6)}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=5, max_size=5))
def test_five_objects_are_named_in_order_whatever_the_network_says(names):
    objects = column(5)
    found = relabel_by_order(said(objects, dict(enumerate(names, 1))), competition(), rule(), IDENTITY)
    assert names_of(found, objects) == IN_ORDER
    assert not found.argmax(axis=0)[objects == 0].any() and found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float32).sum(axis=0), 1, atol=5e-3)


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(3)), st.tuples(*[st.booleans()] * 3), st.sampled_from("RLAPSI"), st.integers(0, 10**6))
def test_the_order_is_anatomical_however_the_file_lies(axes, flips, along, seed):
    """The row is along one direction of the patient; the file's axes are permuted, flipped and tilted."""
    world, sign = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}[along]
    objects = column(5)  # the first is at the high end of axis 2
    matrix = np.zeros((3, 3))
    others = [axis for axis in range(3) if axis != world]
    matrix[world, 2], matrix[others[0], 0], matrix[others[1], 1] = sign, 1, 1
    random = np.random.default_rng(seed)
    tilt, _ = np.linalg.qr(np.eye(3) + 0.12 * random.normal(size=(3, 3)))
    matrix = tilt * np.sign(np.diag(tilt)) @ matrix @ np.diag(random.uniform(0.5, 2, 3))
    turned, turned_matrix = objects.transpose(axes), matrix[:, axes]
    for axis, flip in enumerate(flips):
        if flip:
            turned, turned_matrix = np.flip(turned, axis), turned_matrix * np.where(np.arange(3) == axis, -1, 1)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turned_matrix, random.normal(size=3) * 100
    names = dict(enumerate(random.integers(0, 5, 5).tolist(), 1))
    found = relabel_by_order(said(turned, names), competition(), rule(along), affine)
    assert names_of(found, turned) == IN_ORDER


def test_half_a_vertebra_called_by_its_neighbours_name_gets_one_name():
    objects = column(5)
    halves = said(objects, {number: number - 1 for number in range(1, 6)})
    lower = (objects == 2) & (np.arange(objects.shape[2]) < np.argwhere(objects == 2)[:, 2].mean())
    halves[2][lower], halves[3][lower] = halves[3][lower], halves[2][lower]
    assert names_of(halves, objects)[2] == [2, 3]
    assert names_of(relabel_by_order(halves, competition(), rule(), IDENTITY), objects) == IN_ORDER


def test_a_voxel_that_is_surely_a_vertebra_belongs_to_it_though_no_class_wins():
    """0.4 background against 0.3 and 0.3: argmax gives background, the sum gives vertebra."""
    objects = column(5)
    unsure = said(objects, {1: 0, 2: 1, 3: 2, 4: 3, 5: 4})
    unsure[:, objects == 3] = np.array([0.4, 0, 0, 0.3, 0.3, 0], np.float16)[:, None]
    assert names_of(unsure, objects)[3] == [0]
    assert names_of(relabel_by_order(unsure, competition(), rule(), IDENTITY), objects) == IN_ORDER


@pytest.mark.parametrize(
    ("names", "first"), [([1, 2, 3], 1), ([2, 2, 4], 2), ([0, 3, 4], 2), ([0, 1, 3], 0), ([4, 4, 4], 2)]
)
def test_of_fewer_objects_the_networks_labels_say_where_the_counting_starts(names, first):
    objects = column(3)
    found = relabel_by_order(said(objects, dict(enumerate(names, 1))), competition(), rule(), IDENTITY)
    assert names_of(found, objects) == {number: [first + number] for number in (1, 2, 3)}


def test_of_more_objects_the_largest_neighbours_get_the_names():
    objects = column(7)
    tall = objects.copy()
    tall[(objects == 1) & (np.arange(objects.shape[0])[:, None, None] > 9)] = 0  # two parts of vertebrae
    tall[(objects == 7) & (np.arange(objects.shape[0])[:, None, None] > 9)] = 0
    found = relabel_by_order(said(tall, {n: min(n - 1, 4) for n in range(1, 8)}), competition(), rule(), IDENTITY)
    assert names_of(found, tall) == {1: [0], 2: [1], 3: [2], 4: [3], 5: [4], 6: [5], 7: [0]}
    np.testing.assert_allclose(found.astype(np.float32).sum(axis=0), 1, atol=5e-3)


def test_fragments_are_not_counted_and_keep_the_networks_label():
    objects = column(5)
    objects[0, 0, 0:3] = 6
    objects[1, 1, objects.shape[2] - 1] = 7
    names = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 1, 7: 3}
    found = relabel_by_order(said(objects, names), competition(), rule(split=None), IDENTITY)
    assert names_of(found, objects) == {**IN_ORDER, 6: [2], 7: [4]}
    counted = relabel_by_order(said(objects, names), competition(), rule(split=None, smallest=1), IDENTITY)
    assert names_of(counted, objects)[7] == [0]  # seven objects: the five largest neighbours are the vertebrae
    none = relabel_by_order(said(objects, names), competition(), rule(smallest=10**6), IDENTITY)
    np.testing.assert_array_equal(none, said(objects, names))


@pytest.mark.parametrize("names", [[0, 1, 2, 3, 4], [1, 1, 1, 1, 1], [0, 0, 2, 4, 4]])
def test_objects_that_touch_by_a_bridge_are_parted(names):
    objects = column(5)
    bridged = objects.copy()
    for number in range(1, 5):  # two voxels wide, from each block to the next
        low = np.argwhere(objects == number)[:, 2].min()
        bridged[9:11, 12:14, low - 3 : low] = number
    assert (
        split_touching(bridged > 0, np.zeros(bridged.shape, int), None, np.ones(3), np.eye(3)[2]).max() == 1
    )  # without a split: one piece
    found = relabel_by_order(said(bridged, dict(enumerate(names, 1))), competition(), rule(), IDENTITY)
    assert names_of(found, np.where(bridged == objects, objects, 0)) == IN_ORDER


def test_objects_that_touch_face_to_face_are_parted_by_the_networks_labels():
    objects = column(5)
    joined = objects.copy()
    low = np.argwhere(objects == 2)[:, 2].min()
    joined[4:16, 8:18, low - 3 : low] = 2  # the gap between the second and the third is filled
    found = relabel_by_order(said(joined, {1: 1, 2: 2, 3: 3, 4: 4, 5: 4}), competition(), rule(), IDENTITY)
    assert names_of(found, objects) == IN_ORDER


def test_vertebrae_that_touch_by_their_tails_are_parted():
    """Behind the blocks there is one thick column: the blocks are thicker, and each gets a part of it."""
    objects = column(5, size=(14, 14, 12))
    column_behind = (objects.shape[0] // 2 - 3, objects.shape[0] // 2 + 3)
    joined = objects.copy()
    for z in range(objects.shape[2]):
        nearest = min(range(1, 6), key=lambda number: abs(np.argwhere(objects == number)[:, 2].mean() - z))
        joined[column_behind[0] : column_behind[1], 1:8, z] = nearest
    for names in ([2, 2, 2, 2, 2], [4, 3, 2, 1, 0], [0, 1, 2, 3, 4], [1, 2, 3, 4, 4]):
        found = relabel_by_order(said(joined, dict(enumerate(names, 1))), competition(), rule(), IDENTITY)
        assert names_of(found, objects) == IN_ORDER  # the blocks are whole
        assert np.mean(found.argmax(axis=0)[joined > 0] == joined[joined > 0]) > 0.95  # and so is most of the column
    exact = relabel_by_order(
        said(joined, {number: number - 1 for number in range(1, 6)}), competition(), rule(), IDENTITY
    )
    np.testing.assert_array_equal(exact.argmax(axis=0), joined)  # where the network is right, nothing changes


def test_a_piece_without_a_core_goes_to_the_vertebra_beside_it():
    objects = column(5)
    for number in range(1, 6):  # the tail is cut off
        objects[:, 6:8][objects[:, 6:8] == number] = 0
    objects[5:8, 4:6, 0:5] = 6  # a loose piece, and one that is far from everything
    far = np.pad(objects, ((40, 0), (0, 0), (0, 0)))
    far[0, 0, 0:3] = 7
    found = relabel_by_order(said(far, {1: 2, 2: 2, 3: 2, 4: 2, 5: 2, 6: 0, 7: 3}), competition(), rule(), IDENTITY)
    assert names_of(found, far) == {**IN_ORDER, 6: [5], 7: [4]}


def vertebrae(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a phantom's vertebrae (*spatial) int, 1 to 5 from the top, on a random orientation, and its affine."""
    from competition.datasets.phantoms.spine import draw_volume

    _, labels, mm = draw_volume(np.random.default_rng(seed))  # axes run to R, A, S
    objects, affine = np.where(labels <= 5, labels, 0).astype(int), np.diag([*mm, 1.0])
    random = np.random.default_rng(seed)
    order = random.permutation(3)
    objects, affine[:3, :3] = objects.transpose(order), affine[:3, order]
    for axis in np.flatnonzero(random.integers(0, 2, 3)):
        objects = np.flip(objects, axis)
        affine[:3, 3] += affine[:3, axis] * (objects.shape[axis] - 1)
        affine[:3, axis] *= -1
    return objects, affine


def dice(found: np.ndarray, objects: np.ndarray) -> list[float]:
    return [
        2 * ((found == n) & (objects == n)).sum() / ((found == n).sum() + (objects == n).sum()) for n in range(1, 6)
    ]


# Arches that hang on their bodies by the edges and corners of voxels, and touch the arch below by their sides.
JOINTED = [1004, 1007, 1009, 1011]


@pytest.mark.parametrize("seed", [0, 5, *JOINTED])
def test_a_perfect_prediction_remains_as_it_is(seed):
    objects, affine = vertebrae(seed)
    assert connected_components(objects > 0).max() < 5  # they touch
    before = said(objects, {number: number - 1 for number in range(1, 6)}, sure=0.6)
    np.testing.assert_array_equal(relabel_by_order(before, competition(), rule(), affine).argmax(axis=0), objects)


@pytest.mark.parametrize("seed", [0, 5, *JOINTED])
def test_vertebrae_with_joints_and_tails(seed):
    """Labels in the wrong order separate the objects; if all have one label, the shapes do."""
    objects, affine = vertebrae(seed)
    shuffled = dict(enumerate(np.random.default_rng(seed).permutation(5).tolist(), 1))
    found = relabel_by_order(said(objects, shuffled), competition(), rule(), affine).argmax(axis=0)
    np.testing.assert_array_equal(found, objects)
    for names in (dict.fromkeys(range(1, 6), 2), {1: 1, 2: 1, 3: 2, 4: 4, 5: 4}):
        found = relabel_by_order(said(objects, names), competition(), rule(), affine).argmax(axis=0)
        np.testing.assert_array_equal(found > 0, objects > 0)
        assert min(dice(found, objects)) >= 0.95


def test_a_class_without_a_core_of_its_own_remains():
    """Two blocks are one by their shape; the labels separate them. The image border cuts off the fifth."""
    objects = column(5)
    low = np.argwhere(objects == 2)[:, 2].min()
    objects[4:16, 8:18, low - 3 : low] = 2  # no gap
    objects = objects[:, :, np.argwhere(objects == 5)[:, 2].max() :]  # one slice of it is left
    before = said(objects, {number: number - 1 for number in range(1, 6)})
    for along, affine in (("S", IDENTITY), ("I", np.diag([1.0, 1.0, -1.0, 1.0]))):
        np.testing.assert_array_equal(
            relabel_by_order(before, competition(), rule(along), affine).argmax(axis=0), objects
        )


def test_a_loose_process_keeps_its_label_and_a_patch_of_a_wrong_name_does_not():
    """The second object's tail is cut off and touches the third; a patch of the third has the second one's label."""
    objects = column(5)
    z = np.argwhere(objects == 3)[:, 2].max()
    objects[9:11, 2:8][objects[9:11, 2:8] == 2] = 0
    objects[9:11, 2:7, z + 1 : z + 4] = 2
    objects[9:11, 6, z - 4 : z + 1] = 3
    assert (
        connected_components(objects == 2).max() == 2
        and connected_components((objects == 2) | (objects == 3)).max() == 2
    )
    labels = objects.copy()
    labels[6:9, 10:13, z - 3 : z] = 2
    labels[4:6, 14:18, z - 1 : z + 1] = 1
    found = relabel_by_order(
        said(labels, {number: number - 1 for number in range(1, 6)}), competition(), rule(), IDENTITY
    )
    np.testing.assert_array_equal(found.argmax(axis=0), objects)


def test_labels_that_end_in_the_middle_of_blocks_do_not_cut():
    """Each class is one piece, as large as the others and in order, but half a block too low."""
    objects = column(5, gap=0)
    objects = np.where(np.isin(np.arange(objects.shape[2]) % 8, (0, 7)), 0, objects)
    objects[8:12, 12:14] = 1  # what joins them
    middles = [np.argwhere(objects[4] == n)[:, 1].mean() for n in (2, 3, 4, 5)]
    labels = 1 + (np.arange(objects.shape[2])[:, None] < middles).sum(axis=1)
    found = relabel_by_order(
        said(np.where(objects > 0, labels, 0), {n: n - 1 for n in range(1, 6)}), competition(), rule(), IDENTITY
    )
    blocks = np.where(np.isin(np.arange(objects.shape[2]) % 8, (0, 7)), 0, column(5, gap=0))
    blocks[8:12, 12:14] = 0
    assert names_of(found, blocks) == IN_ORDER


def test_other_classes_and_their_voxels_are_left_alone():
    comp = competition(classes=["sacrum", *NAMES])
    objects = column(6)
    names = {1: 2, 2: 2, 3: 2, 4: 4, 5: 5, 6: 0}
    before = said(objects, names, classes=6)
    found = relabel_by_order(before, comp, rule(), IDENTITY)
    assert names_of(found, objects) == {1: [2], 2: [3], 3: [4], 4: [5], 5: [6], 6: [1]}
    np.testing.assert_array_equal(found[:, objects == 6], before[:, objects == 6])
    np.testing.assert_array_equal(found[:, objects == 0], before[:, objects == 0])


def test_overlapping_classes():
    objects = column(5)
    before = said(objects, {1: 1, 2: 1, 3: 1, 4: 4, 5: 0})[1:]
    before[4][objects == 2] = 0.8  # two classes in one place
    found = relabel_by_order(before, competition("overlapping"), rule(), IDENTITY)
    for index in range(5):
        np.testing.assert_array_equal(found[index] > 0.5, objects == index + 1)


def test_nothing_there_and_one_class_short():
    nothing = said(np.zeros((4, 5, 6), int), {})
    np.testing.assert_array_equal(relabel_by_order(nothing, competition(), rule(), IDENTITY), nothing)
    one = column(1)
    assert names_of(relabel_by_order(said(one, {1: 3}), competition(), rule(), IDENTITY), one) == {1: [4]}


# With the other steps, and the cases


def test_steps_of_each_class_come_after(tmp_path):
    objects = column(5)
    objects[9, 12, np.argwhere(objects == 4)[:, 2].min() + 3] = 0  # a hole
    wrong = said(objects, {1: 1, 2: 1, 3: 1, 4: 1, 5: 4})
    nibabel.save(
        nibabel.Nifti1Image(np.zeros(objects.shape, np.uint8), np.diag([1.0, 1.0, -1.0, 1.0])), tmp_path / "a.nii.gz"
    )
    comp = competition().model_copy(update={"root": tmp_path})
    row = SimpleNamespace(id="a", images=json.dumps({"image": "a.nii.gz"}))
    done = postprocess(wrong, comp, PostprocessConfig(number=rule("I"), steps=[StepConfig(fill_holes=True)]), row)
    whole = column(5)
    for index, mask in enumerate(done.masks):
        np.testing.assert_array_equal(mask, whole == index + 1)


def test_the_affine_comes_from_the_header_or_the_picture(tmp_path):
    comp = competition().model_copy(update={"root": tmp_path})
    affine = np.array([[0, 0, 2, 5], [1.5, 0, 0, -3], [0, -0.5, 0, 1], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5), np.uint8), affine), tmp_path / "a.nii.gz")
    row = SimpleNamespace(id="a", images=json.dumps({"image": "a.nii.gz"}))
    np.testing.assert_allclose(case_affine(row, comp), affine)
    np.testing.assert_array_equal(case_affine(InMemoryCase("b", SimpleNamespace(affine=affine)), comp), affine)
    np.save(tmp_path / "c.npy", np.zeros((3, 4, 5), np.uint8))
    for images in ({"image": "c.npy"}, {"image": ["s_0.png", "s_1.png"]}):
        with pytest.raises(MaskfoldError, match="`postprocess.number` .*case c has no affine"):
            case_affine(SimpleNamespace(id="c", images=json.dumps(images)), comp)


def experiment(**changes: Any) -> Experiment:
    comp = competition().model_dump(by_alias=True) | {"root": "."} | changes.pop("comp", {})
    return Experiment.model_validate(
        {
            "competition": comp,
            "patch": {"size": [8] * comp["dimensions"]},
            "model": {"target": "x.Y"},
            "loss": {"target": "x.Z"},
            "postprocess": {"number": {"along": "S", "classes": NAMES, **changes}},
        }
    )


def test_what_cannot_be_numbered_is_refused():
    assert experiment().postprocess.number.split == 0.6
    for changes, words in (
        ({"classes": ["L1", "L6"]}, "class L6"),
        ({"classes": ["L1", "L1"]}, "duplicates"),
        ({"classes": ["L1"]}, "at least 2"),
        ({"along": "up"}, "Input should be"),
        ({"comp": {"dimensions": 2}}, "requires volumes"),
        ({"comp": {"instances": True}}, "requires volumes"),
    ):
        with pytest.raises(ValueError, match=words):
            experiment(**changes)


def test_out_of_fold_submit_and_predict_number_alike(finished, tiny, tmp_path):
    """The demo's two classes as a row of two: the order decides everywhere that masks are made."""
    from competition.data.cases import case_rows, case_table
    from competition.ensembling.ensemble import EnsemblePredictor
    from competition.export.predictor import Predictor
    from competition.postprocessing.evaluation import OofScores
    from competition.runs.blend import Ensemble
    from competition.submission.label_files import predict_images
    from competition.submission.submit import submit, write_oof_submission

    exp = tiny(3)
    names = list(exp.competition.classes)
    exp = tiny(3, f"postprocess={{number: {{along: A, classes: [{', '.join(names)}], smallest: 1, split: null}}}}")
    run = finished(exp, "demo3d-tiny", noise=0.6)
    comp, number = exp.competition, exp.postprocess.number
    blend = Ensemble((run,), (1.0,))
    kept, rows = blend.out_of_fold(), case_rows(run.cases)
    with OofScores(blend, workers=1) as evaluation:
        evaluation.score({0: ((),), 1: ((),)})
        table = evaluation.score_table(lambda *_: ())
    changed = 0
    for row in rows:
        truth = np.asarray(nibabel.load(Path(comp.root) / json.loads(row.masks)["files"]).dataobj)
        plain = kept.read(row.id)
        labels = relabel_by_order(plain, comp, number, case_affine(row, comp)).argmax(axis=0)
        changed += not np.array_equal(labels, plain.argmax(axis=0))
        for value, name in enumerate(names, 1):
            dice = (
                2
                * ((labels == value) & (truth == value)).sum()
                / max(1, (labels == value).sum() + (truth == value).sum())
            )
            found = table[(table["id"] == row.id) & (table["class"] == name)]["dice"].item()
            assert found == pytest.approx(dice, abs=1e-6) or (np.isnan(found) and not (truth == value).any())
    assert changed
    verdict, score = write_oof_submission(run, tmp_path / "oof.csv")
    assert verdict.ok and score == pytest.approx(table["score"].mean())

    tests = case_rows(case_table(comp, "test"))
    ensemble = EnsemblePredictor(blend, tests[0])
    wanted = {
        row.id: relabel_by_order(ensemble.probabilities(row), comp, number, case_affine(row, comp)).argmax(axis=0)
        for row in tests
    }
    for one in predict_images([run], Path(comp.root) / "imagesTs", tmp_path / "out"):
        np.testing.assert_array_equal(np.asarray(nibabel.load(one.files[0]).dataobj), wanted[one.case_id])
    from competition.export import mlflow_model

    mlflow_model.write_predictor_folder(run, tmp_path / "bundle")
    images = [Path(comp.root) / json.loads(row.images)["image"] for row in tests]
    for row, labels in zip(tests, Predictor(tmp_path / "bundle").predict(images), strict=True):
        np.testing.assert_array_equal(labels, wanted[row.id])
    from competition.config.profiles import profile_of
    from competition.submission.reader import read_submission

    done = submit([run])
    shapes = {row.id: tuple(json.loads(row.shape)) for row in tests}
    entries = list(read_submission(done.path, profile_of(comp), shapes))
    assert len(entries) == 2 * len(tests)
    for entry in entries:
        np.testing.assert_array_equal(entry.mask, wanted[entry.case_id] == names.index(entry.class_name) + 1)
