"""The case table finds the files, checks that they agree, and names those that do not."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest

from competition.data.cases import COLUMNS, case_table, data_hash
from competition.data.masks import load_mask
from competition.data.readers import load_image, read_case_header
from competition.errors import MaskfoldError
from tests.conftest import SHARED
from tests.host import competition, pictures, write_nifti, write_png, write_text

RNG = np.random.default_rng(11)


def row(table: pandas.DataFrame, case_id: str) -> SimpleNamespace:
    return SimpleNamespace(**table.set_index("id", drop=False).loc[case_id].to_dict())


def test_columns_of_a_plain_competition(tmp_path: Path) -> None:
    pictures(tmp_path, ["b", "a", "007"])
    table = case_table(competition(tmp_path))
    assert tuple(table.columns) == COLUMNS
    assert table["id"].tolist() == ["007", "a", "b"] and set(table["split"]) == {"train"}
    first = row(table, "007")
    assert json.loads(first.images) == {"image": "images/007.png"}
    assert json.loads(first.masks) == {"kind": "labels", "files": "masks/007.png"}
    assert (json.loads(first.shape), json.loads(first.spacing), first.channels) == ([6, 8], [1.0, 1.0], 1)
    assert (first.group, first.stratum, json.loads(first.slices)) == ("007", "", None)
    assert table.attrs["skipped"] == []


def test_table_survives_a_csv(tmp_path: Path) -> None:
    """As a run's folder keeps it."""
    pictures(tmp_path, ["007", "b"])
    comp = competition(tmp_path)
    table = case_table(comp)
    table.to_csv(tmp_path / "cases.csv", index=False)
    again = pandas.read_csv(
        tmp_path / "cases.csv", dtype={"id": str, "group": str, "stratum": str}, keep_default_na=False
    )
    assert data_hash(again) == data_hash(table)
    np.testing.assert_array_equal(load_mask(comp, row(again, "007")), load_mask(comp, row(table, "007")))
    for series in again.itertuples(index=False):
        load_image(comp, series)


def test_table_and_hash_do_not_know_where_the_data_are(tmp_path: Path) -> None:
    pictures(tmp_path / "one", ["a", "b"])
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (case_table(competition(tmp_path / name)) for name in ("one", "two"))
    pandas.testing.assert_frame_equal(one, two)
    assert data_hash(one) == data_hash(two.sample(frac=1, random_state=3))


def test_hashes_follow_content(tmp_path: Path) -> None:
    pictures(tmp_path, ["a", "b"])
    before = case_table(competition(tmp_path))
    shutil.copy(tmp_path / "images/a.png", tmp_path / "images/b.png")
    same = case_table(competition(tmp_path))
    assert row(same, "a").image_hash == row(same, "b").image_hash != row(before, "b").image_hash
    assert row(same, "a").hash != row(same, "b").hash  # their masks differ
    write_png(tmp_path / "masks/a.png", np.zeros((6, 8), np.uint8))
    other = case_table(competition(tmp_path))
    assert row(other, "a").hash != row(same, "a").hash and row(other, "a").image_hash == row(same, "a").image_hash
    assert len({data_hash(table) for table in (before, same, other)}) == 3
    grouped = case_table(competition(tmp_path, group="."))
    assert data_hash(grouped) == data_hash(other)
    assert data_hash(case_table(competition(tmp_path, group="(?s)^" + "(.)"))) == data_hash(other)
    assert data_hash(other.assign(group="x")) != data_hash(other)


def test_packed_volumes_are_alike_whatever_name_they_were_packed_under(tmp_path: Path) -> None:
    """A gzip file keeps its own name; two copies of one volume must still look the same."""
    volume = RNG.integers(0, 9, (4, 5, 6), dtype=np.uint8)
    for case_id in ("first", "second"):
        plain = write_nifti(tmp_path / "unpacked" / f"{case_id}.nii", volume)
        (tmp_path / "i").mkdir(exist_ok=True)
        with gzip.GzipFile(tmp_path / "i" / f"{case_id}.nii.gz", "wb", mtime=len(case_id)) as file:
            file.write(plain.read_bytes())
        write_nifti(tmp_path / "m" / f"{case_id}.nii.gz", np.zeros_like(volume))
    assert (tmp_path / "i/first.nii.gz").read_bytes() != (tmp_path / "i/second.nii.gz").read_bytes()
    table = case_table(competition(tmp_path, dimensions=3, train={"images": "i/{id}.nii.gz", "masks": "m/{id}.nii.gz"}))
    assert table["image_hash"].nunique() == 1 and table["hash"].nunique() == 1


def test_channels_of_several_files_keep_the_order_of_the_yaml(tmp_path: Path) -> None:
    parts = {name: RNG.random((4, 5, 6)).astype(np.float32) for name in ("t2", "flair", "ct")}
    parts["ct"] = (parts["ct"] * 100).astype(np.int16)
    for name, array in parts.items():
        write_nifti(tmp_path / "p1" / f"p1_{name}.nii.gz", array)
    write_nifti(tmp_path / "p1" / "seg.nii.gz", np.zeros((4, 5, 6), np.uint8))
    images = {name: "{id}/{id}_" + name + ".nii.gz" for name in parts}
    comp = competition(tmp_path, dimensions=3, train={"images": images, "masks": "{id}/seg.nii.gz"})
    table = case_table(comp)
    assert list(json.loads(table.loc[0, "images"])) == ["t2", "flair", "ct"] and table.loc[0, "channels"] == 3
    picture = load_image(comp, table.iloc[0])
    np.testing.assert_array_equal(picture.array, np.stack(list(parts.values())).astype(np.float32))
    assert picture.array.dtype == np.float32 and picture.affine is not None

    write_nifti(tmp_path / "p2" / "p2_t2.nii.gz", parts["t2"])
    with pytest.raises(MaskfoldError, match=r"ase p2 has no channel flair: .*train.images.flair"):
        case_table(comp)
    skipping = comp.model_copy(update={"on_bad_case": "skip"})
    assert case_table(skipping)["id"].tolist() == ["p1"]


def test_channels_of_other_sizes_and_places(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a_t1.nii", np.zeros((4, 5, 6), np.uint8))
    write_nifti(tmp_path / "a_t2.nii", np.zeros((4, 5, 7), np.uint8))
    write_nifti(tmp_path / "seg/a.nii", np.zeros((4, 5, 6), np.uint8))
    comp = competition(
        tmp_path, dimensions=3, train={"images": {"t1": "{id}_t1.nii", "t2": "{id}_t2.nii"}, "masks": "seg/{id}.nii"}
    )
    with pytest.raises(MaskfoldError, match=r"case a .*a_t1\.nii has 4×5×6, and a_t2\.nii has 4×5×7"):
        case_table(comp)
    write_nifti(tmp_path / "a_t2.nii", np.zeros((4, 5, 6), np.uint8), np.diag([1, 1, 1.5, 1]))
    with pytest.raises(
        MaskfoldError, match=r"case a differ: .*voxel .* in .*a_t1\.nii and .*a_t2\.nii are 2\.5 voxels apart"
    ):
        case_table(comp)


def stack(root: Path, case_id: str, numbers: list[int], size: tuple[int, int] = (5, 6)) -> None:
    for number in numbers:
        write_png(root / case_id / f"slice_{number:02d}.png", np.full(size, number, np.uint8))
        write_png(root / case_id / f"mask_{number}.png", np.full(size, number == numbers[-1], np.uint8))


STACK = {"images": "{id}/slice_{z}.png", "masks": "{id}/mask_{z}.png"}


def test_slices_become_a_volume(tmp_path: Path) -> None:
    stack(tmp_path, "a", [2, 9, 10])
    stack(tmp_path, "b", [1])
    comp = competition(tmp_path, dimensions=3, train=STACK)
    table = case_table(comp)
    assert json.loads(row(table, "a").slices) == ["02", "09", "10"]
    assert json.loads(row(table, "a").shape) == [5, 6, 3] and json.loads(row(table, "a").spacing) == [1.0, 1.0, 1.0]
    picture = load_image(comp, row(table, "a"))
    assert picture.array.shape == (1, 5, 6, 3) and picture.array[0, 0, 0].tolist() == [2, 9, 10]
    mask = load_mask(comp, row(table, "a"))
    assert mask.shape == (1, 5, 6, 3) and mask[0, 0, 0].tolist() == [0, 0, 1]  # mask_10 belongs to slice_10
    assert load_mask(comp, row(table, "b")).shape == (1, 5, 6, 1)


def test_stacks_that_do_not_fit(tmp_path: Path) -> None:
    stack(tmp_path, "a", [1, 2])
    comp = competition(tmp_path, dimensions=3, train=STACK)
    write_png(tmp_path / "a" / "slice_03.png", np.zeros((5, 6), np.uint8))
    with pytest.raises(MaskfoldError, match="ase a has no slice 3 in mask cell"):
        case_table(comp)
    write_png(tmp_path / "a" / "mask_3.png", np.zeros((5, 6), np.uint8))
    write_png(tmp_path / "a" / "slice_03.png", np.zeros((5, 7), np.uint8))
    with pytest.raises(MaskfoldError, match=r"slice_01\.png and .*slice_03\.png have different sizes: 5×6 .* and 5×7"):
        case_table(comp)
    with pytest.raises(MaskfoldError, match="dimensions is 2") as error:
        case_table(competition(tmp_path, train=STACK))
    assert error.value.status == 2


def test_volume_mask_for_a_stack(tmp_path: Path) -> None:
    stack(tmp_path, "a", [1, 2])
    volume = RNG.integers(0, 2, (5, 6, 2), dtype=np.uint8)
    np.save(tmp_path / "a.npy", volume)
    comp = competition(tmp_path, dimensions=3, train={"images": STACK["images"], "masks": "{id}.npy"})
    np.testing.assert_array_equal(load_mask(comp, case_table(comp).iloc[0])[0], volume)


def test_image_without_mask_and_mask_without_image(tmp_path: Path) -> None:
    pictures(tmp_path, ["a", "b", "c", "d"])
    for name in ("masks/a.png", "masks/c.png"):
        (tmp_path / name).unlink()
    comp = competition(tmp_path)
    with pytest.raises(MaskfoldError) as error:
        case_table(comp)
    for word in ("ase a ", "1 more case has the same problem", "images/a.png", "masks/{id}.png"):
        assert word in error.value.message
    skipping = case_table(competition(tmp_path, on_bad_case="skip"))
    assert skipping["id"].tolist() == ["b", "d"] and [name for name, _ in skipping.attrs["skipped"]] == ["a", "c"]

    for name in ("images/a.png", "images/b.png", "images/c.png"):
        (tmp_path / name).unlink()
    with pytest.raises(MaskfoldError, match=r"ase b has a mask \(train.masks `masks/\{id\}\.png`\) but no image"):
        case_table(comp)


def test_mask_of_another_size_or_place(tmp_path: Path) -> None:
    pictures(tmp_path, ["a"])
    write_png(tmp_path / "masks/a.png", np.zeros((8, 6), np.uint8))
    with pytest.raises(MaskfoldError, match=r"case a .*images/a\.png has 6×8, and masks/a\.png has 8×6"):
        case_table(competition(tmp_path))
    volumes = {"images": "i/{id}.nii", "masks": "m/{id}.nii"}
    comp = competition(tmp_path, dimensions=3, train=volumes)
    shift = np.eye(4)
    write_nifti(tmp_path / "i/a.nii", np.zeros((4, 5, 6), np.uint8))
    for apart, fits in ((0.04, True), (0.06, False)):
        shift[0, 3] = apart
        write_nifti(tmp_path / "m/a.nii", np.zeros((4, 5, 6), np.uint8), shift)
        if fits:
            assert len(case_table(comp)) == 1
        else:
            with pytest.raises(MaskfoldError, match=r"case a differ: .*voxel .* are 0\.06 voxels apart"):
                case_table(comp)


def test_bad_files_stop_or_are_left_out(tmp_path: Path) -> None:
    pictures(tmp_path, ["a", "b", "c", "d", "e"])
    whole = (tmp_path / "images/b.png").read_bytes()
    (tmp_path / "images/b.png").write_bytes(whole[:-36])  # the header is whole, the pixels are cut
    (tmp_path / "images/c.png").write_bytes(b"")
    write_png(tmp_path / "masks/d.png", np.full((6, 8), 7, np.uint8))
    with pytest.raises(MaskfoldError, match=r"images/c\.png cannot be read"):
        case_table(competition(tmp_path))
    table = case_table(competition(tmp_path, on_bad_case="skip"))
    assert table["id"].tolist() == ["a", "e"]
    reasons = dict(table.attrs["skipped"])
    assert "cannot be read" in reasons["b"] and "cannot be read" in reasons["c"] and "found 7" in reasons["d"]
    for case_id in ("a", "e"):
        (tmp_path / f"images/{case_id}.png").write_bytes(b"")
    with pytest.raises(MaskfoldError, match=r"5 cases are skipped"):
        case_table(competition(tmp_path, on_bad_case="skip"))


def test_nan_is_left_out_under_skip(tmp_path: Path) -> None:
    good = np.zeros((3, 4, 5), np.float32)
    bad = good.copy()
    bad[0, 0, 0] = np.nan
    for case_id, array in (("a", good), ("b", bad)):
        write_nifti(tmp_path / f"i/{case_id}.nii", array)
        write_nifti(tmp_path / f"m/{case_id}.nii", good.astype(np.uint8))
    plain = {"dimensions": 3, "train": {"images": "i/{id}.nii", "masks": "m/{id}.nii"}}
    comp = competition(tmp_path, **plain)
    with pytest.raises(MaskfoldError, match=r"b\.nii has 1 NaN"):
        load_image(comp, row(case_table(comp), "b"))
    table = case_table(competition(tmp_path, on_bad_case="skip", **plain))
    assert table["id"].tolist() == ["a"] and table.attrs["skipped"][0][0] == "b"


def test_each_header_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for case_id in ("a", "b"):
        for folder in ("images", "labels"):
            write_nifti(tmp_path / folder / f"{case_id}.nii.gz", np.ones((4, 5, 6), np.uint8))
    read: list[str] = []
    monkeypatch.setattr(
        "competition.data.cases.read_case_header",
        lambda comp, files, *rest: read.append(str(files)) or read_case_header(comp, files, *rest),
    )
    files = {"images": "images/{id}.nii.gz", "masks": "labels/{id}.nii.gz"}
    assert len(case_table(competition(tmp_path, dimensions=3, train=files))) == 2
    assert sorted(read) == ["images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz", "labels/b.nii.gz"]


def test_test_cases_have_no_truth(tmp_path: Path) -> None:
    pictures(tmp_path, ["a"])
    comp = competition(tmp_path, test={"images": "images/{id}.png"}, group="nothing that an id holds")
    table = case_table(comp, "test")
    assert table.loc[0, "masks"] == "null" and table.loc[0, "split"] == "test"
    with pytest.raises(ValueError, match="a is a test case"):
        load_mask(comp, table.iloc[0])
    with pytest.raises(MaskfoldError, match="has no `test` section") as error:
        case_table(competition(tmp_path), "test")
    assert error.value.status == 2


def test_groups_and_strata_by_expression_and_by_table(tmp_path: Path) -> None:
    pictures(tmp_path, ["p1_a", "p1_b", "p2_a"])
    write_text(tmp_path / "meta.csv", "id,site,kind\np1_a.png,x,1\np1_b.png,y,1\np2_a.png,x,2\nelsewhere.png,z,3\n")
    table = case_table(competition(tmp_path, group=r"^(p\d+)_", stratum=r"[ab]$"))
    assert table["group"].tolist() == ["p1", "p1", "p2"] and table["stratum"].tolist() == ["a", "b", "a"]
    table = case_table(competition(tmp_path, group="meta.csv:site", stratum="meta.csv:kind"))
    assert table["group"].tolist() == ["x", "y", "x"] and table["stratum"].tolist() == ["1", "1", "2"]


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"group": "("}, "competition.group: found `(`"),
        ({"group": "^p1"}, "does not match the id p2_a"),
        ({"stratum": "meta.csv:sight"}, "no column `sight`: found id, site, hole, twice"),
        ({"group": "mets.csv:site"}, "mets.csv does not exist; its folder has meta.csv"),
        ({"group": "meta.csv:hole"}, "no value of group for the id p1_b (column `hole`)"),
        ({"group": "meta.csv:twice"}, "the id p1_a: 1 in line 2, and 2 in line 5"),
    ],
)
def test_rules_for_groups_that_do_not_work(tmp_path: Path, changes: dict[str, str], wrong: str) -> None:
    pictures(tmp_path, ["p1_a", "p1_b", "p2_a"])
    write_text(tmp_path / "meta.csv", "id,site,hole,twice\np1_a,x,1,1\np1_b,y,,1\np2_a,x,1,1\np1_a,x,1,2\n")
    with pytest.raises(MaskfoldError) as error:
        case_table(competition(tmp_path, **changes))
    assert wrong in error.value.message


@pytest.mark.skipif(not (SHARED / "hippocampus").is_dir(), reason="needs the real data")
def test_real_hippocampus() -> None:
    comp = competition(
        SHARED / "hippocampus",
        dimensions=3,
        classes=["anterior", "posterior"],
        train={"images": "imagesTr/{id}.nii.gz", "masks": "labelsTr/{id}.nii.gz"},
        test={"images": "imagesTs/{id}.nii.gz"},
    )
    table = case_table(comp)
    assert (len(table), len(case_table(comp, "test")), table["image_hash"].nunique()) == (200, 60, 200)
    first = table.iloc[0]
    assert first["id"] == "hippocampus_001" and json.loads(first["shape"]) == [35, 51, 35]
    assert np.unique(load_mask(comp, first)).tolist() == [0, 1, 2]


@pytest.mark.skipif(not (SHARED / "nuclei").is_dir(), reason="needs the real data")
def test_real_nuclei() -> None:
    comp = competition(
        SHARED / "nuclei",
        classes=["nucleus"],
        instances=True,
        train={
            "images": "stage1_train/{id}/images/{id}.png",
            "rle": "stage1_train_labels.csv",
            "columns": {"id": "ImageId", "mask": "EncodedPixels"},
        },
        test={"images": "stage1_test/{id}/images/{id}.png"},
    )
    table = case_table(comp)
    assert (len(table), len(case_table(comp, "test"))) == (564, 100)
    assert sum(len(json.loads(masks)["rows"]) for masks in table["masks"]) == 24566
    assert set(table["channels"]) == {4}
