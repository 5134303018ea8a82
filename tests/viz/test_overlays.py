import gc
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from competition.config.competition import Competition
from competition.errors import MaskfoldError
from competition.viz.overlays import (
    IGNORED_COLOUR,
    _dice_per_class,
    _foreground_profiles,
    _select_planes,
    class_colour,
    draw_case,
    draw_comparison,
    get_ignored_voxels,
    label_to_class_masks,
    save_figure,
)

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def competition(dimensions: int = 2, **changes: Any) -> Competition:
    ending = "nii.gz" if dimensions == 3 else "png"
    return Competition.model_validate(
        {
            "name": "toy",
            "root": "data",
            "dimensions": dimensions,
            "classes": ["one", "two"],
            "train": {"images": f"images/{{id}}.{ending}", "masks": f"masks/{{id}}.{ending}"},
            **changes,
        }
    )


def pixels(path: Path) -> np.ndarray:
    """(rows, columns, 3) float of a PNG."""
    from matplotlib.image import imread

    return np.asarray(imread(path))[..., :3]


def near(picture: np.ndarray, colour: tuple[float, ...]) -> np.ndarray:
    """Return the pixels of this colour, without the titles at the top and the legend at the bottom."""
    matches = np.abs(picture - np.asarray(colour)).max(axis=-1) < 0.02
    matches[:60] = matches[-60:] = False
    return matches


def tint(index: int) -> tuple[float, ...]:
    """A class's colour on black."""
    return tuple(0.25 * value for value in class_colour(index))


@pytest.fixture
def square() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A grey picture (1, 40, 60) with class 1 on the left in the truth, class 2 on the right in the prediction."""
    image = np.random.default_rng(0).integers(0, 255, (1, 40, 60), dtype=np.uint8)
    truth = np.zeros((1, 40, 60), np.uint8)
    truth[0, 10:30, 5:20] = 1
    masks = np.zeros((2, 40, 60), bool)
    masks[1, 10:30, 40:55] = True
    return image, truth, masks


def test_truth_and_prediction_have_their_class_colours(tmp_path: Path, square: Any) -> None:
    image, truth, masks = square
    draw_case(tmp_path / "a.png", image, truth, masks, competition(), "a · epoch 1")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    picture = pixels(tmp_path / "a.png")
    first, second = (
        np.nonzero(near(picture, class_colour(index)).any(axis=0))[0] / picture.shape[1] for index in (0, 1)
    )
    assert 1 / 3 < first.min() < first.max() < 2 / 3, "class 1 is in the middle panel only"
    assert first.max() < 0.5, "in its left part"
    assert second.min() > 2 / 3, "class 2 is in the right panel only"
    assert second.min() > 0.85, "in its right part"


def test_empty_masks_and_names_with_special_characters(tmp_path: Path, square: Any) -> None:
    image, truth, masks = square
    comp = competition(classes=["$frac{", "_two"])
    draw_case(tmp_path / "a.png", image, 0 * truth, masks & False, comp, "$x_{")
    assert not near(pixels(tmp_path / "a.png"), class_colour(0)).any()
    draw_case(tmp_path / "a.png", image, truth, masks, comp, "$x_{", dice={"$\\frac": math.nan, "_two": 0.0})
    assert near(pixels(tmp_path / "a.png"), class_colour(0)).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (2, 90)])
def test_images_of_one_row_or_column(tmp_path: Path, shape: tuple[int, int]) -> None:
    truth = np.ones((1, *shape), np.uint8)
    masks = np.zeros((2, *shape), bool)
    masks[1] = True
    draw_case(tmp_path / "a.png", np.zeros((3, *shape), np.uint8), truth, masks, competition(), "a")
    middle, right = np.array_split(pixels(tmp_path / "a.png"), 3, axis=1)[1:]
    assert near(middle, tint(0)).any()
    assert near(right, tint(1)).any()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "bool", "int16"])
def test_any_dtype_and_channels(tmp_path: Path, channels: int, kind: str) -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, 64), (channels, 48, 64))
    scale = {"uint8": 255, "uint16": 65535, "float32": 1e-3, "bool": 1, "int16": 3000}[kind]
    image = (ramp * scale).astype(kind)
    draw_case(
        tmp_path / "a.png", image, np.zeros((1, 48, 64), np.uint8), np.zeros((2, 48, 64), bool), competition(), "a"
    )
    panel = pixels(tmp_path / "a.png")[200:300, 10:455]
    assert panel.max() - panel.min() > 0.9, "the whole range is used"


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    image = np.full((1, 8, 8), np.nan, np.float32)
    image[0, 0, 0] = np.inf
    draw_case(tmp_path / "a.png", image, np.zeros((1, 8, 8), np.uint8), np.zeros((2, 8, 8), bool), competition(), "a")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_slices_show_most_truth() -> None:
    found = np.zeros((10, 12, 14), bool)
    found[3, 2:9, 5:9] = True
    found[:, 4, 6] = True
    assert [
        (plane.axis, plane.position)
        for plane in _select_planes(_foreground_profiles([found], found.shape), None, is_stack=False)
    ] == [(2, 6), (1, 4), (0, 3)]
    assert [
        plane.position
        for plane in _select_planes(_foreground_profiles([found & False], found.shape), None, is_stack=False)
    ] == [7, 6, 5], "else in the middle"


def test_without_truth_slices_show_most_prediction(tmp_path: Path) -> None:
    masks = np.zeros((2, 8, 9, 10), bool)
    masks[0, 1, 1, 1] = True
    truth = np.zeros((1, 8, 9, 10), np.uint8)
    draw_case(tmp_path / "a.png", np.zeros((1, 8, 9, 10), np.float32), truth, masks, competition(3), "a")
    assert near(pixels(tmp_path / "a.png"), tint(0)).any()


def test_orientation_of_slices() -> None:
    empty = np.zeros((4, 5, 6), bool)
    array = np.arange(4 * 5 * 6).reshape(1, 4, 5, 6)
    axial, coronal, sagittal = _select_planes(
        _foreground_profiles([empty], empty.shape), (1.0, 2.0, 3.0), is_stack=False
    )
    assert (axial.cut(array) == array[:, :, :, 3].transpose(0, 2, 1)).all()
    assert (axial.upwards, axial.aspect) == (True, 2.0)
    assert (coronal.cut(array) == array[:, :, 2].transpose(0, 2, 1)).all()
    assert coronal.aspect == 3.0
    assert (sagittal.cut(array).shape, sagittal.aspect) == ((1, 6, 5), 1.5)
    stacked = _select_planes(_foreground_profiles([empty], empty.shape), (1.0, 2.0, 3.0), is_stack=True)[0]
    assert (stacked.cut(array) == array[:, :, :, 3]).all(), "the host's own slice, rows downwards"
    assert (stacked.upwards, stacked.aspect) == (False, 0.5)


def test_ignored_voxels_are_grey_and_not_counted(tmp_path: Path, square: Any) -> None:
    image, truth, masks = square
    truth[0, :10] = 255
    comp = competition(ignore=255)
    ignored = get_ignored_voxels(truth, comp)
    assert ignored is not None and ignored.sum() == 600
    masks[0] = truth[0] != 0
    assert _dice_per_class(truth, masks, comp)["one"] == 1.0
    draw_case(tmp_path / "a.png", 0 * image, truth, masks, comp, "a")
    picture = pixels(tmp_path / "a.png")
    grey = near(picture, tuple(0.6 * value for value in IGNORED_COLOUR))
    assert grey[:, picture.shape[1] // 3 : 2 * picture.shape[1] // 3].any()
    assert not grey[:, : picture.shape[1] // 3].any()


def test_overlapping_classes_are_split_by_channel() -> None:
    truth = np.zeros((2, 4, 4), np.uint8)
    truth[0, :2], truth[1, 1:3] = 1, 1
    assert (label_to_class_masks(truth, competition(labels="overlapping")) == truth.astype(bool)).all()
    exclusive = label_to_class_masks(np.array([[0, 1, 2, 255]], np.uint8), competition())
    assert exclusive.tolist() == [[False, True, False, False], [False, False, True, False]]


def test_class_colours_differ() -> None:
    colours = [class_colour(index) for index in range(250)]
    assert len(set(colours)) == 250
    assert all(0 <= value <= 1 for colour in colours for value in colour)


def test_a_failed_drawing_leaves_no_file(tmp_path: Path, square: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    image, truth, masks = square
    with pytest.raises(MaskfoldError, match="disk full"):
        draw_case(tmp_path / "a.png", image, truth, masks, competition(), "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not (SHARED / "hippocampus").exists(), reason="the real competition is not there")
def test_a_real_volume(tmp_path: Path) -> None:
    from competition.data.readers import read_image, read_labels

    label = sorted((SHARED / "hippocampus" / "labelsTr").glob("h*.nii.gz"))[0]
    image = read_image(SHARED / "hippocampus" / "imagesTr" / label.name)
    truth = read_labels(label)[0].astype(np.uint8)[None]
    masks = np.stack([truth[0] == 1, truth[0] == 2])
    draw_case(tmp_path / "a.png", image.array, truth, masks, competition(3), label.name, spacing=image.spacing)
    picture = pixels(tmp_path / "a.png")
    for index in (0, 1):
        drawn = near(picture, class_colour(index))
        middle, right = np.array_split(drawn, 3, axis=1)[1:]
        assert middle.sum() > 50 and abs(int(middle.sum()) - int(right.sum())) < 0.3 * middle.sum()


@pytest.mark.parametrize("codes", ["RAS", "PIR", "ASL", "LPI"])
def test_the_figure_is_independent_of_the_stored_orientation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: str
) -> None:
    """The same patient in another orientation gives the same panels; only axis names and slice numbers change."""
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

    from competition.viz import overlays

    rng = np.random.default_rng(0)
    image = rng.normal(size=(12, 16, 20)).astype(np.float32)
    truth = np.zeros(image.shape, np.uint8)
    truth[8:10, 2:5, 3:7], truth[2:4, 9:12, 12:15] = 1, 2
    affine = np.diag([-1.0, 2.0, 3.0, 1.0])  # LAS

    def drawn(codes: str) -> list[Any]:
        panels: list[Any] = []
        draw = overlays._draw_masks
        turn = ornt_transform(axcodes2ornt("LAS"), axcodes2ornt(codes))
        turned = affine @ inv_ornt_aff(turn, image.shape)
        turned_image, turned_truth = apply_orientation(image, turn), apply_orientation(truth, turn)
        with monkeypatch.context() as patch:
            patch.setattr(
                overlays, "_draw_image", lambda axes, picture, plane: panels.append(picture) or axes.imshow(picture)
            )
            patch.setattr(overlays, "_draw_masks", lambda axes, layers: panels.append(layers) or draw(axes, layers))
            draw_case(
                tmp_path / "a.png",
                turned_image[None],
                turned_truth[None],
                np.stack([turned_truth == 1, turned_truth == 2]),
                competition(3),
                "a",
                spacing=np.sqrt((turned[:3, :3] ** 2).sum(axis=0)).tolist(),
                affine=turned,
            )
        return panels

    expected, panels = drawn("LAS"), drawn(codes)
    assert len(expected) == len(panels) == 15  # three cuts, each with three pictures and two sets of masks
    for expected_panel, panel in zip(expected, panels, strict=True):
        np.testing.assert_array_equal(expected_panel, panel)
    # The prediction in the first row: the front is up and the patient's left is right, like +x in LAS.
    axial = expected[4]
    assert axial.shape == (2, 16, 12) and axial[1, 9:12, 2:4].all() and axial[1].sum() == 6


def test_a_saved_figure_frees_its_arrays_at_once(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((400, 400))
    figure = Figure()
    axes = figure.subplots()
    drawn = weakref.ref(axes.imshow(image))
    axes.contour(image > 0.5, levels=[0.5])
    gc.disable()
    try:
        save_figure(figure, tmp_path / "a.png")
        del axes
        assert drawn() is None, "garbage collection would free it much later"
    finally:
        gc.enable()


def test_ignored_voxels_do_not_choose_the_compared_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comp, chosen = competition(3), []
    truth = np.zeros((1, 12, 10, 8), np.uint8)
    truth[0, 6:] = 255
    first = np.zeros((len(comp.classes), *truth.shape[1:]), bool)
    second = first.copy()
    second[0, 6:, :, 5], second[0, 2, 3, 1] = True, True
    monkeypatch.setattr(
        "competition.viz.overlays._select_planes",
        lambda *arguments, **named: chosen.extend(_select_planes(*arguments, **named)) or chosen,
    )
    draw_comparison(tmp_path / "a.png", np.zeros(truth.shape, np.float32), truth, (first, second), comp, "a")
    assert [(plane.axis, plane.position) for plane in chosen] == [(2, 1), (1, 3), (0, 2)]
