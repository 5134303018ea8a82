"""Rows that a bundle writes, for samples that are complete, incomplete, empty or a dummy."""

from __future__ import annotations

import csv
import shutil

import pytest

from competition.submission.submit import submit
from tests.export.bundles import run_bundle


@pytest.fixture
def mounted(finished, tiny, bundled, tmp_path):
    """A bundle, what submit writes, and a copy of the competition's test part."""
    run = finished(tiny(2))
    root = run.exp.competition.root
    copy = tmp_path / "mounted"
    shutil.copytree(root, copy)
    return bundled([run]), submit([run], output=tmp_path / "submit.csv").path, copy


def rows(path):
    with open(path, newline="") as stream:
        return list(csv.reader(stream))


def by_id(path):
    """What submit wrote, by id and then class as the YAML has them: the demo's sample is in another order."""
    header, *lines = rows(path)
    assert lines != sorted(lines)
    return [header, *sorted(lines, key=lambda line: (line[0], ["ring", "grain"].index(line[1])))]


def with_sample(root, change):
    """The sample's rows changed."""
    header, *lines = rows(root / "sample_submission.csv")
    with open(root / "sample_submission.csv", "w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *change(lines)])


def test_an_empty_sample_gives_the_rows_of_all_test_images(mounted, tmp_path, capsys):
    folder, submitted, root = mounted
    with_sample(root, lambda lines: [])
    assert run_bundle(folder, root, tmp_path / "x.csv") == 0
    assert rows(tmp_path / "x.csv") == by_id(submitted)
    assert "has no rows, so the submission file gets the rows of the 3 test cases" in capsys.readouterr().out


def test_a_dummy_without_an_image_plays_no_part(mounted, tmp_path, capsys):
    folder, submitted, root = mounted
    with_sample(root, lambda lines: [["dummy", *lines[0][1:]]])
    assert run_bundle(folder, root, tmp_path / "x.csv") == 0
    assert rows(tmp_path / "x.csv") == by_id(submitted)
    assert "a dummy" in capsys.readouterr().out


def test_the_samples_own_order_is_kept_and_what_it_lacks_follows(mounted, tmp_path):
    folder, submitted, root = mounted
    with_sample(root, lambda lines: lines[::-1])
    assert run_bundle(folder, root, tmp_path / "x.csv") == 0
    header, *lines = rows(submitted)
    assert rows(tmp_path / "x.csv") == [header, *lines[::-1]]
    last = lines[-1][0]
    with_sample(
        root, lambda lines: [line for line in lines if line[0] == last][:1]
    )  # one case, and not all its classes
    assert run_bundle(folder, root, tmp_path / "y.csv") == 0
    found = rows(tmp_path / "y.csv")[1:]
    assert found[0] == lines[-1] and sorted(found) == sorted(lines)


def test_ids_with_an_extension_stay_so_for_cases_that_the_sample_lacks(mounted, tmp_path):
    folder, submitted, root = mounted
    with_sample(root, lambda lines: [[f"{lines[0][0]}.png", *lines[0][1:]]])
    assert run_bundle(folder, root, tmp_path / "x.csv") == 0
    header, *lines = rows(submitted)
    assert sorted(rows(tmp_path / "x.csv")[1:]) == sorted([f"{line[0]}.png", *line[1:]] for line in lines)


def test_rows_without_an_image_get_empty_masks_among_others(mounted, tmp_path, capsys):
    folder, submitted, root = mounted
    with_sample(root, lambda lines: [["lost", *lines[0][1:]], *lines])
    assert run_bundle(folder, root, tmp_path / "x.csv") == 0
    header, *lines = rows(submitted)
    assert rows(tmp_path / "x.csv") == [header, ["lost", *lines[0][1:-1], ""], *lines]
    assert "1 row of sample_submission.csv has no image" in capsys.readouterr().out


def test_without_a_test_image_the_sample_comes_back_empty(mounted, tmp_path):
    folder, _, root = mounted
    images = [path for path in (root / "test").rglob("*") if path.is_file()] if (root / "test").exists() else []
    images = images or list((root / "imagesTs").rglob("*.*"))
    assert len(images) == 3
    for path in images:
        path.unlink()
    given = rows(root / "sample_submission.csv")
    assert run_bundle(folder, root, tmp_path / "x.csv") == 0
    assert rows(tmp_path / "x.csv") == [given[0], *([*line[:-1], ""] for line in given[1:])]
    with_sample(root, lambda lines: [])
    assert run_bundle(folder, root, tmp_path / "y.csv") == 0
    assert rows(tmp_path / "y.csv") == given[:1]


def demo_images(root):
    """The test images of the demo; its image pattern is one file per case."""
    images = sorted(path for path in (root / "test").rglob("*") if path.suffix == ".png")
    assert len(images) == 3
    return images


@pytest.mark.parametrize("with_keys", [True, False], ids=["sample", "empty sample"])
def test_extensions_in_capitals_are_the_same_images(mounted, tmp_path, with_keys):
    """Otherwise the host's test set would have no image, and the file would have empty masks only."""
    folder, submitted, root = mounted
    for image in demo_images(root):
        image.rename(image.with_suffix(".PNG"))
    if not with_keys:
        with_sample(root, lambda lines: [])
    assert run_bundle(folder, root, tmp_path / "x.csv") == 0
    found = rows(tmp_path / "x.csv")
    assert found == (rows(submitted) if with_keys else by_id(submitted))
    assert any(line[-1] for line in found[1:])


def test_images_in_another_format_are_an_error(mounted, tmp_path, capsys):
    """The folder is not empty, so empty masks would be wrong."""
    from PIL import Image

    folder, _, root = mounted
    for image in demo_images(root):
        Image.open(image).convert("RGB").save(image.with_suffix(".JPG"))
        image.unlink()
    assert run_bundle(folder, root, tmp_path / "x.csv") != 0
    assert not (tmp_path / "x.csv").exists()
    said = capsys.readouterr().err
    assert "3 other image files" in said and ".JPG" in said


def test_a_missing_sample_is_no_obstacle_and_a_wrong_folder_is(mounted, tmp_path, capsys):
    folder, submitted, root = mounted
    (root / "sample_submission.csv").unlink()
    assert run_bundle(folder, root, tmp_path / "x.csv") == 0
    assert sorted(rows(tmp_path / "x.csv")[1:]) == sorted(rows(submitted)[1:])
    (tmp_path / "elsewhere").mkdir()
    assert run_bundle(folder, tmp_path / "elsewhere", tmp_path / "y.csv") == 2
    found = capsys.readouterr()
    assert "elsewhere" in found.err and "--input" in found.err and "competition.root" not in found.err
    assert "has no rows" not in found.out and not (tmp_path / "y.csv").exists()


def test_a_case_that_cannot_be_read_ends_all_or_is_empty_as_asked(mounted, tmp_path, capsys):
    folder, submitted, root = mounted
    name = rows(submitted)[-1][0]
    broken = next(path for path in root.rglob(f"*{name}*") if path.suffix == ".png")
    broken.write_bytes(broken.read_bytes()[:200])
    assert run_bundle(folder, root, tmp_path / "x.csv") == 1
    said = capsys.readouterr().err
    assert (
        not (tmp_path / "x.csv").exists() and name in said and "run with --go-on" in said and "on_bad_case" not in said
    )
    assert run_bundle(folder, root, tmp_path / "x.csv", "--go-on") == 0
    assert rows(tmp_path / "x.csv") == [[*line[:-1], ""] if line[0] == name else line for line in rows(submitted)]
    said = capsys.readouterr().out
    assert f"{name} gets empty masks" in said and f"({name})" in said.splitlines()[-1]


@pytest.mark.parametrize("with_keys", [True, False], ids=["sample", "empty sample"])
def test_a_case_without_a_readable_header_is_empty_as_asked(mounted, tmp_path, capsys, with_keys):
    folder, submitted, root = mounted
    name = rows(submitted)[-1][0]
    broken = next(path for path in root.rglob(f"*{name}*") if path.suffix == ".png")
    broken.write_bytes(b"this is no picture")
    if not with_keys:
        with_sample(root, lambda lines: [])
    assert run_bundle(folder, root, tmp_path / "x.csv", "--go-on") == 0
    expected = rows(submitted) if with_keys else by_id(submitted)
    assert rows(tmp_path / "x.csv") == [[*line[:-1], ""] if line[0] == name else line for line in expected]
    assert f"{name} gets empty masks" in capsys.readouterr().out


def test_volumes_with_rows_per_slice_need_no_sample_either(finished, bundled, tmp_path, tiny):
    import numpy as np
    from PIL import Image

    from competition.config.loading import load_experiment
    from tests.conftest import ROOT, TINY

    root, generator = tmp_path / "stacks", np.random.default_rng(0)
    keys = []
    for split, count in (("train", 4), ("test", 2)):
        for case in range(count):
            truth = generator.random((24, 24, 3)) > 0.6
            for z in range(3):
                for kind, array in (("image", truth * 120 + generator.integers(0, 90, truth.shape)), ("mask", truth)):
                    path = root / split / kind / f"case{case}" / f"slice_{z:04d}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array[..., z].astype(np.uint8)).save(path)
            keys += (
                [[f"case{case}_slice_{z:04d}", cls] for z in range(3) for cls in ("a", "b")] if split == "test" else []
            )
    (root / "sample.csv").write_text("\n".join(["id,class,rle", *(",".join([*key, ""]) for key in keys)]) + "\n")
    (root / "competition.yaml").write_text(
        f"name: stacks\nroot: {root}\ndimensions: 3\nclasses: [a, b]\n"
        "train: {images: 'train/image/{id}/slice_{z}.png', masks: 'train/mask/{id}/slice_{z}.png'}\n"
        "test: {images: 'test/image/{id}/slice_{z}.png'}\nsubmission: {sample: sample.csv, columns: {class: class}}\n"
    )
    base = (ROOT / "experiments" / "demo3d" / "unet3d.yaml").read_text()
    (root / "tiny.yaml").write_text(base)
    exp = load_experiment(
        root / "tiny.yaml",
        [
            "folds.k=2",
            "training.precision=fp32",
            "training.budget_minutes=null",
            "encoder_weights=null",
            *TINY[3],
            "prepare={intensity: zscore}",
        ],
    )
    run = finished(exp, "stacks-tiny")
    done = submit([run], output=tmp_path / "submit.csv")
    folder = bundled([run])
    (root / "sample.csv").write_text("id,class,rle\n")
    assert run_bundle(folder, root, tmp_path / "x.csv") == 0
    assert (tmp_path / "x.csv").read_bytes() == done.path.read_bytes()
    assert [line[:2] for line in rows(tmp_path / "x.csv")[1:]] == keys


def test_a_selection_of_test_cases_does_not_stop_at_the_hidden_test_set(finished, tiny, bundled, tmp_path, capsys):
    """The hidden images have other ids than those that `test.cases` lists, so all of them are predicted."""
    whole = finished(tiny(2))
    submitted = submit([whole], output=tmp_path / "submit.csv").path
    root = shutil.copytree(whole.exp.competition.root, tmp_path / "hidden")
    names = sorted(path.stem for path in demo_images(root))
    folder = bundled([finished(tiny(2, f"competition.test.cases=[{names[0]}]"), "selected")])
    for path in demo_images(root):
        path.rename(path.with_stem(f"hidden_{path.stem}"))
    with_sample(root, lambda lines: [[f"hidden_{line[0]}", *line[1:]] for line in lines])
    assert run_bundle(folder, root, tmp_path / "x.csv") == 0
    assert {line[0] for line in rows(tmp_path / "x.csv")[1:]} == {f"hidden_{name}" for name in names}
    assert len(rows(tmp_path / "x.csv")) == len(rows(submitted))
    assert "all test images are predicted, because test.cases does not fit them" in capsys.readouterr().out


def test_a_damaged_image_is_no_reason_to_predict_images_that_test_cases_leaves_out(finished, tiny, bundled, tmp_path):
    root = shutil.copytree(tiny(2).competition.root, tmp_path / "copy")
    first, second, _ = sorted(demo_images(root))
    folder = bundled([finished(tiny(2, f"competition.test.cases=[{first.stem},{second.stem}]"), "selected")])
    second.write_bytes(b"damaged")
    (root / "sample_submission.csv").unlink()
    assert run_bundle(folder, root, tmp_path / "x.csv", "--go-on") == 0
    assert {line[0] for line in rows(tmp_path / "x.csv")[1:]} == {first.stem, second.stem}
