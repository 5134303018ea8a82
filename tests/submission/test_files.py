"""Submissions of label files: written, read back, compared with the host's sample."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
from pydantic import ValidationError

from competition.config.competition import Competition, SubmissionFormat
from competition.data.cases import case_rows, case_table
from competition.data.readers import read_labels
from competition.ensembling.ensemble import EnsemblePredictor
from competition.errors import MaskfoldError
from competition.postprocessing.pipeline import postprocess
from competition.records import SUBMISSION_DIGEST, is_unedited
from competition.runs.blend import Ensemble
from competition.runs.identity.hashing import hashed_settings
from competition.submission.files import (
    SampleFiles,
    check_file_names,
    file_labels,
    file_names,
    file_values,
    submit_files,
)


def with_format(run, **keys):
    """Return a run whose competition has another submission format."""
    submission = SubmissionFormat.model_validate({**run.exp.competition.submission.model_dump(by_alias=True), **keys})
    comp = run.exp.competition.model_copy(update={"submission": submission})
    return replace(run, exp=run.exp.model_copy(update={"competition": comp}))


def expected_labels(run):
    """Return the label map of each test case, by id."""
    comp = run.exp.competition
    rows = case_rows(case_table(comp, "test"))
    predictor = EnsemblePredictor(Ensemble((run,), (1.0,)), rows[0])
    found = {}
    for row in rows:
        probabilities, presence = predictor.predict(row)
        found[row.id] = file_labels(postprocess(probabilities, comp, run.exp.postprocess, row, presence), comp)
    return found


@pytest.mark.parametrize(
    ("dimensions", "name"), [(2, "{id}.png"), (3, "{id}.nii.gz"), (3, "labels/{id}.mha"), (3, "{id}.tif")]
)
def test_the_files_hold_the_masks_on_the_grid_of_their_images(finished, tiny, dimensions, name, tmp_path):
    if name.endswith(".mha"):
        pytest.importorskip("SimpleITK")
    run = with_format(finished(tiny(dimensions), f"demo{dimensions}d-tiny"), files=name, sample=None)
    comp = run.exp.competition
    done = submit_files([run], output=tmp_path / "out")
    said = json.loads(done.summary_path.read_text())
    assert SUBMISSION_DIGEST in said["digests"] and is_unedited(said, SUBMISSION_DIGEST)
    assert said["expected"]["score"] is not None and done.validation.rows == len(said["files"])
    for row in case_rows(case_table(comp, "test")):
        path = tmp_path / "out" / name.replace("{id}", row.id)
        wanted = expected_labels(run)[row.id]
        expected = wanted.get("", next(iter(wanted.values())))
        if name.endswith(".mha"):
            import SimpleITK

            image = SimpleITK.ReadImage(str(path))
            source = nibabel.load(Path(comp.root) / next(iter(json.loads(row.images).values())))
            assert np.array_equal(SimpleITK.GetArrayFromImage(image).T, expected)
            corner = np.array(image.TransformContinuousIndexToPhysicalPoint([1.0, 2.0, 3.0])) * [-1, -1, 1]
            assert np.allclose(corner, (source.affine @ [1, 2, 3, 1])[:3], atol=1e-4)
        elif name.endswith(".tif"):
            assert np.array_equal(read_labels(path, 3)[0].transpose(1, 0, 2), expected)
        else:
            labels, affine = read_labels(path, dimensions)
            assert np.array_equal(labels, expected)
            if dimensions == 3:
                source = nibabel.load(Path(comp.root) / next(iter(json.loads(row.images).values())))
                assert np.allclose(affine, source.affine)


def test_an_archive_has_the_samples_names_and_types(finished, tiny, tmp_path):
    run = finished(tiny(2))
    rows = case_rows(case_table(run.exp.competition, "test"))
    sample = tmp_path / "sample.zip"
    with zipfile.ZipFile(sample, "w") as archive:
        for row in rows:
            empty = np.zeros(json.loads(row.shape), np.uint16)
            archive.writestr(f"{row.id}.png", cv2.imencode(".png", empty)[1].tobytes())
    values = [255] * len(run.exp.competition.classes) if len(run.exp.competition.classes) == 1 else None
    run = with_format(run, files="{id}.png", zip=True, labels=values, sample=str(sample))
    done = submit_files([run], output=tmp_path / "out.zip")
    first = done.path.read_bytes()
    with zipfile.ZipFile(done.path) as archive:
        assert sorted(archive.namelist()) == sorted(f"{row.id}.png" for row in rows)
        image = cv2.imdecode(np.frombuffer(archive.read(f"{rows[0].id}.png"), np.uint8), cv2.IMREAD_UNCHANGED)
        assert image.dtype == np.uint16 and (values is None or set(np.unique(image)) <= {0, 255})
    assert submit_files([run], output=tmp_path / "out.zip").path.read_bytes() == first, "written again, the same bytes"


@pytest.mark.parametrize("fault", ["name", "shape", "missing"])
def test_a_sample_that_differs_is_refused_and_nothing_is_left(finished, tiny, tmp_path, fault):
    run = finished(tiny(2))
    folder = tmp_path / "sample"
    folder.mkdir()
    for row in case_rows(case_table(run.exp.competition, "test")):
        height, width = json.loads(row.shape)
        cv2.imwrite(str(folder / f"{row.id}.png"), np.zeros((height + (fault == "shape"), width), np.uint8))
    first = sorted(folder.iterdir())[0]
    if fault == "name":
        first.rename(first.with_name("other.png"))
    if fault == "missing":
        first.unlink()
    run = with_format(run, files="{id}.png", sample=str(folder))
    with pytest.raises(MaskfoldError, match="sample"):
        submit_files([run], output=tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("fault", ["shape", "type"])
def test_sizes_and_types_of_the_sample_are_checked_before_the_prediction(finished, tiny, tmp_path, monkeypatch, fault):
    run = finished(tiny(2))
    folder = tmp_path / "sample"
    folder.mkdir()
    rows = case_rows(case_table(run.exp.competition, "test"))
    for row in rows:
        height, width = json.loads(row.shape)
        is_wrong = fault == "shape" and row is rows[-1]
        cv2.imwrite(str(folder / f"{row.id}.png"), np.zeros((height + is_wrong, width), np.uint8))
    count = len(run.exp.competition.classes)
    run = with_format(run, files="{id}.png", sample=str(folder), labels=[300] * count if fault == "type" else None)
    monkeypatch.setattr("competition.submission.files.EnsemblePredictor", lambda *args: pytest.fail("it predicts"))
    with pytest.raises(MaskfoldError, match=rows[-1].id if fault == "shape" else "cannot hold"):
        submit_files([run], output=tmp_path / "out")


def test_the_values_that_files_have():
    keys = {
        "name": "x",
        "root": ".",
        "dimensions": 2,
        "classes": ["a", "b"],
        "train": {"images": "{id}.png", "masks": "m/{id}.png"},
    }
    one_file = Competition.model_validate({**keys, "submission": {"files": "{id}.png", "labels": [3, 300]}})
    assert file_values(one_file, "") == [3, 300]
    by_class = Competition.model_validate({**keys, "submission": {"files": "{class}/{id}.png", "labels": [3, 300]}})
    assert file_values(by_class, "b") == [300]
    plain = Competition.model_validate({**keys, "submission": {"files": "{class}/{id}.png"}})
    assert file_values(plain, "b") == [1]
    nested = {**keys, "labels": "overlapping", "label_values": [[1, 2], 2], "submission": {"files": "{id}.png"}}
    assert sorted(file_values(Competition.model_validate(nested), "")) == [1, 2]
    objects = {**keys, "classes": ["a"], "instances": True, "submission": {"files": "{id}.png"}}
    assert file_values(Competition.model_validate(objects), "") == []


def test_a_folder_with_other_files_is_kept(finished, tiny, tmp_path):
    run = with_format(finished(tiny(2)), files="{id}.png", sample=None)
    submit_files([run], output=tmp_path / "out")
    submit_files([run], output=tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(MaskfoldError, match="notes.txt"):
        submit_files([run], output=tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("keys", [{"files": "x.png"}, {"files": "../{id}.png"}, {"files": "/{id}.png"},
                                  {"files": "{id}.jpg"}, {"zip": True}, {"labels": [1]}])  # fmt: skip
def test_impossible_patterns_are_refused(keys):
    with pytest.raises(ValidationError):
        SubmissionFormat.model_validate(keys)


def test_the_format_of_files_does_not_enter_a_runs_hash(finished, tiny):
    run = finished(tiny(2))
    changed = with_format(run, files="{id}.png", zip=True)
    for version in (1, 2):
        assert hashed_settings(run.exp, version) == hashed_settings(changed.exp, version)
    assert not {"files", "zip", "labels"} & SubmissionFormat().model_dump().keys()


def test_a_missing_simpleitk_is_refused_before_prediction(finished, tiny, monkeypatch, tmp_path):
    import sys

    run = with_format(finished(tiny(3), "demo3d-tiny"), files="{id}.mha", sample=None)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(MaskfoldError, match="SimpleITK") as caught:
        submit_files([run], output=tmp_path / "out")
    assert "pip install SimpleITK" in caught.value.hint and caught.value.status == 2


def test_two_cases_or_classes_with_one_file_name_are_refused():
    comp = Competition(
        name="x",
        root=".",
        dimensions=2,
        classes=["a", "a_b"],
        labels="overlapping",
        train={"images": "{id}.png", "masks": {"a": "a/{id}.png", "a_b": "a_b/{id}.png"}},
        submission={"files": "{class}_{id}.png"},
    )
    names = {case: file_names(comp, case) for case in ("c", "b_c")}
    with pytest.raises(
        MaskfoldError,
        match=r"the files of case c, class a_b, and case b_c, class a, would have the same name a_b_c\.png",
    ) as caught:
        check_file_names(names)
    assert caught.value.status == 2
    with pytest.raises(MaskfoldError, match=r"x\.png and X\.png differ only in upper and lower case or Unicode form"):
        check_file_names({"x": {"": "x.png"}, "X": {"": "X.png"}})
    check_file_names({case: file_names(comp, case) for case in ("c", "d")})
    braces = comp.model_copy(update={"classes": ["a", "{id}"]})
    assert file_names(braces, "x{class}") == {"a": "a_x{class}.png", "{id}": "{id}_x{class}.png"}


def test_submit_refuses_file_names_that_collide(finished, tiny, tmp_path, monkeypatch):
    run = with_format(finished(tiny(2)), files="{id}.png", sample=None)
    monkeypatch.setattr("competition.submission.files.file_names", lambda comp, case: {"": "same.png"})
    with pytest.raises(MaskfoldError, match="would have the same name"):
        submit_files([run], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", ["encrypted", "compression", "cut"])
def test_a_member_of_the_sample_that_cannot_be_unpacked_is_an_error(tmp_path, fault):
    path = tmp_path / "sample.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", cv2.imencode(".png", np.zeros((9, 9), np.uint8))[1].tobytes())
    content = bytearray(path.read_bytes())
    local, central = content.index(b"PK\3\4"), content.index(b"PK\1\2")
    for start in (local + 6, central + 8):  # flags; the compression follows
        content[start] |= fault == "encrypted"
        content[start + 2] = 99 if fault == "compression" else content[start + 2]
    if fault == "cut":
        content[local + 35 : local + 60] = bytes(25)
    path.write_bytes(content)
    with pytest.raises(MaskfoldError, match="a.png in .* is damaged"):
        SampleFiles.open(path).header("a.png", 2, tmp_path)


def test_a_sample_may_have_names_with_an_underscore(tmp_path):
    path = tmp_path / "sample.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("_a.png", "b.png", "__MACOSX/._b.png", ".DS_Store"):
            archive.writestr(name, b"x")
    assert SampleFiles.open(path).names == ("_a.png", "b.png")
