"""Pseudo-labels come from leak-free teachers, and no fold is trained on copies of its validation cases."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from competition.context import Context
from competition.data.cache import PreprocessedCase
from competition.data.cases import case_rows, case_table
from competition.data.preprocessing import preprocess_case, preprocess_cases
from competition.errors import MaskfoldError
from competition.models.build import build_network
from competition.records import write_json
from competition.runs.checkpoint import save_weights
from competition.runs.fold import FoldResult
from competition.runs.identity.hashing import run_hash
from competition.runs.run import load_run
from competition.training.cross_validate import make_jobs, open_run, prepare_run
from competition.training.extra.fold_data import build_extra_data, check_extra_data, prepare_extra_data
from competition.training.extra.pseudo_labels import Teacher, TeacherEnsemble
from competition.training.fold import run_fold, setup_fold
from competition.training.lineage import training_cases


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """Runs and the cache lie below a working folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def finish(run, sure: dict[int, float] | None = None, only=None):
    """Write untrained members: each predicts ring everywhere with the probability `sure[fold]`, else background."""
    run.write()
    for fold, seed in only or run.members():
        folder = run.member_folder(fold, seed)
        folder.mkdir(parents=True)
        torch.manual_seed(0)
        network = build_network(run.exp, 1, pretrained=False)
        last = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)][-1]
        p = (sure or {}).get(fold, 0.99)
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(torch.tensor([0.0, float(np.log(p / (1 - p))), -30.0]))  # background, ring, grain
        save_weights(folder / "weights.safetensors", network.state_dict())
        write_json(
            folder / "result.json",
            dataclasses.asdict(
                FoldResult(
                    fold=fold,
                    seed=seed,
                    score=0.5,
                    dice={},
                    epochs=1,
                    steps=1,
                    minutes=0.1,
                    peak_gib=0.1,
                    threads=1,
                    precision="32-true",
                    device="cpu",
                    torch=torch.__version__,
                    stopped="",
                )
            ),
        )
    return run


def open_student(exp, name="tiny"):
    """The run and its jobs, made ready as `prepare_run` does, without its look at the network."""
    run = open_run(exp, name)
    check_extra_data(run, make_jobs(run))
    cache = Path("mlruns/prepared")
    prepare_extra_data(run, make_jobs(run), preprocess_cases(run.cases, exp, cache), cache, Context())
    run.write()
    jobs = [dataclasses.replace(job, threads=1) for job in make_jobs(run)]
    for job in jobs:
        job.folder.mkdir(exist_ok=True)
    return run, jobs


def lessons_of(run, job):
    lessons = build_extra_data(job, run, Context())
    return {PreprocessedCase.open(folder).id: PreprocessedCase.open(folder) for folder in lessons.folders}, lessons


def copied(demo2d: Path, tmp_path: Path, name: str = "data") -> Path:
    """The demo's folder, free to be changed."""
    return Path(shutil.copytree(demo2d, tmp_path / name))


def test_each_fold_is_taught_by_the_same_fold_of_the_teacher(tiny):
    teacher = finish(open_run(tiny(2), "teacher"), {0: 0.99, 1: 0.01})
    run, jobs = open_student(tiny(2, f"pseudo.from={teacher.folder}"))
    for job, value in zip(jobs, (1, 0), strict=True):  # fold 0's network says foreground everywhere, fold 1's nowhere
        cases, _ = lessons_of(run, job)
        assert len(cases) == 3  # the demo's test pictures
        assert {int(one) for case in cases.values() for one in np.unique(case.mask)} == {value}
        said = json.loads((job.folder / "lineage.json").read_text())
        assert [one["member"] for one in said["pseudo"]["teachers"]] == [
            f"teacher/{teacher.folder.name}/fold_{job.fold}"
        ]
        assert said["pseudo"]["cases"] == 3 and said["pseudo"]["weight"] == 0.5


def test_a_run_with_other_folds_is_refused_with_its_lineage(tiny, tmp_path):
    teacher = finish(open_run(tiny(2, "seed=77"), "teacher"))
    run = open_run(tiny(2, f"pseudo.from={teacher.folder}"), "tiny")
    with pytest.raises(MaskfoldError, match="may teach fold 0") as error:
        prepare_run(run)
    assert error.value.status == 2 and not run.folder.exists()
    fold_of = {row.id: row.fold for row in run.folds.itertuples()}
    for number in (0, 1):  # each network of the teacher with a case that it learnt from, by hand from both tables
        seen = sorted(teacher.folds.loc[teacher.folds["fold"] != number, "id"])
        leaked = [one for one in seen if fold_of[one] == 0]
        assert f"teacher/{teacher.folder.name}/fold_{number} was trained on {leaked[0]}" in str(error.value)
        assert f"and {len(leaked) - 1} more" in str(error.value)


def test_a_fit_on_all_cases_may_teach_only_such_a_fit(tiny):
    teacher = finish(open_run(tiny(2, "folds.run=full"), "teacher"))
    with pytest.raises(MaskfoldError, match="full was trained on"):
        prepare_run(open_run(tiny(2, f"pseudo.from={teacher.folder}"), "tiny"))
    run, jobs = open_student(tiny(2, f"pseudo.from={teacher.folder}", "folds.run=full"))
    cases, _ = lessons_of(run, jobs[0])
    assert len(cases) == 3


def test_a_teacher_that_began_with_leaky_weights_is_refused(tiny):
    first = finish(open_run(tiny(2, "seed=77"), "first"))
    middle = finish(open_run(tiny(2, f"init_from={first.folder}"), "middle"))  # the same folds as the student's
    with pytest.raises(MaskfoldError) as error:
        prepare_run(open_run(tiny(2, f"pseudo.from={middle.folder}"), "tiny"))
    assert (
        f"middle/{middle.folder.name}/fold_0 was started from first/{first.folder.name}/fold_0, which was trained on"
        in str(error.value)
    )
    shutil.rmtree(first.folder)  # then nobody can tell
    with pytest.raises(MaskfoldError, match="is not a run"):
        prepare_run(open_run(tiny(2, f"pseudo.from={middle.folder}"), "tiny"))


def test_a_teacher_that_was_taught_by_a_leaky_one_is_refused_when_that_one_is_gone(tiny, demo2d, tmp_path):
    """grandparent (full fit of all cases) taught middle, whose own labelled cases are few: only its record tells."""
    grandparent = finish(open_run(tiny(2, "folds.run=full"), "grandparent"))
    ids = sorted(grandparent.cases["id"])
    few, rest = ids[:4], ids[4:]
    root = copied(demo2d, tmp_path)
    middle = open_run(
        tiny(
            2,
            f"competition.root={root}",
            f"competition.train.cases={json.dumps(few)}".replace(" ", ""),
            f"pseudo.from={grandparent.folder}",
            "folds.run=full",
        ),
        "middle",
    )
    prepare_run(middle)
    job = make_jobs(middle)[0]
    job.folder.mkdir()
    build_extra_data(job, middle, Context())
    finish_only = FoldResult(
        fold=-1,
        seed=0,
        score=None,
        dice={},
        epochs=1,
        steps=1,
        minutes=0.1,
        peak_gib=0.1,
        threads=1,
        precision="32-true",
        device="cpu",
        torch="",
        stopped="",
    )
    write_json(job.folder / "result.json", dataclasses.asdict(finish_only))
    shutil.rmtree(grandparent.folder)
    student = tiny(2, f"pseudo.from={middle.folder}", f"competition.train.cases={json.dumps(rest)}".replace(" ", ""))
    with pytest.raises(MaskfoldError) as error:  # it shares no labelled case with middle
        prepare_run(open_run(student, "tiny"))
    assert f"full was taught by grandparent/{grandparent.folder.name}/full, which was trained on" in str(error.value)
    (job.folder / "lineage.json").unlink()
    with pytest.raises(MaskfoldError, match=r"lineage\.json.* is missing"):
        prepare_run(open_run(student, "tiny"))


def test_a_case_that_the_teacher_met_as_an_image_may_not_be_validated(tiny):
    """The teacher learnt pseudo-labels of what the student validates with labels."""
    ids = sorted(open_run(tiny(2), "any").cases["id"])
    few, rest = ids[:4], ids[4:]
    listed = lambda names: f"competition.train.cases={json.dumps(names)}".replace(" ", "")  # noqa: E731
    first = finish(open_run(tiny(2, listed(few)), "first"))
    pattern = tiny(2).competition.train.images
    middle, jobs = open_student(
        tiny(2, listed(few), f"pseudo.from={first.folder}", f"pseudo.images={pattern}"), "middle"
    )
    for job in jobs:
        cases, _ = lessons_of(middle, job)
        assert sorted(cases) == rest  # the labelled ones are left out by themselves
        write_json(
            job.folder / "result.json",
            dataclasses.asdict(
                FoldResult(
                    fold=job.fold,
                    seed=0,
                    score=None,
                    dice={},
                    epochs=1,
                    steps=1,
                    minutes=0.1,
                    peak_gib=0.1,
                    threads=1,
                    precision="",
                    device="cpu",
                    torch="",
                    stopped="",
                )
            ),
        )
    with pytest.raises(MaskfoldError, match="was taught pseudo-labels of"):
        prepare_run(open_run(tiny(2, listed(rest), f"pseudo.from={middle.folder}"), "tiny"))


def test_groups_of_the_student_count_where_the_teacher_knew_none(tiny, demo2d):
    """Fold files: the teacher left out exactly the validated cases, but learnt from another case of their group."""
    ids = sorted(open_run(tiny(2), "any").cases["id"])
    table = "id,patient\n" + "".join(f"{one},p{number // 2}\n" for number, one in enumerate(ids))
    root = copied(demo2d, Path.cwd())
    (root / "patients.csv").write_text(table)
    Path("torn.csv").write_text("id,fold\n" + "".join(f"{one},{number % 2}\n" for number, one in enumerate(ids)))
    teacher = finish(open_run(tiny(2, f"competition.root={root}", "folds={scheme: file, file: torn.csv}"), "teacher"))
    few = f"competition.train.cases={json.dumps(ids[::2])}".replace(
        " ", ""
    )  # one of each patient: all in the teacher's fold 0
    Path("mine.csv").write_text(
        "id,fold\n" + "".join(f"{one},{-1 if number else 0}\n" for number, one in enumerate(ids[::2]))
    )
    settings = [
        f"competition.root={root}",
        few,
        "folds={scheme: file, file: mine.csv}",
        f"pseudo.from={teacher.folder}",
    ]
    open_student(tiny(2, *settings), "alone")  # without groups fold 0 of the teacher has seen nothing that counts
    leak = rf"fold_0 was trained on {ids[1]} \(of the group p0, which the fold validates\)"
    with pytest.raises(MaskfoldError, match=leak):
        prepare_run(open_run(tiny(2, *settings, "competition.group=patients.csv:patient"), "tiny"))


def test_an_image_of_a_validated_group_teaches_the_other_folds_only(tiny, demo2d):
    root = copied(demo2d, Path.cwd())
    ids = sorted(open_run(tiny(2, f"competition.root={root}"), "any").cases["id"])
    tests = sorted(path.stem for path in (root / Path(tiny(2).competition.test.images).parent).iterdir())
    rows = [(one, f"p{number}") for number, one in enumerate(ids)] + [
        (tests[0], "p0"),
        (tests[1], "q"),
    ]  # the third has no row
    (root / "patients.csv").write_text("id,patient\n" + "".join(f"{one},{patient}\n" for one, patient in rows))
    settings = [f"competition.root={root}", "competition.group=patients.csv:patient"]
    teacher = finish(open_run(tiny(2, *settings), "teacher"))
    run, jobs = open_student(tiny(2, *settings, f"pseudo.from={teacher.folder}"))
    home = int(run.folds.loc[run.folds["id"] == ids[0], "fold"].iloc[0])
    for job in jobs:
        cases, lessons = lessons_of(run, job)
        assert sorted(cases) == (tests[1:] if job.fold == home else tests)
        assert lessons.summary["pseudo"]["left_out"] == ({"group": 1} if job.fold == home else {})


def test_copies_of_validated_cases_do_not_teach(tiny, demo2d):
    """The same file under another name has a label; the same image saved again, a bit brighter, resembles one."""
    import cv2

    root = copied(demo2d, Path.cwd())
    comp = tiny(2).competition
    train, test = root / Path(comp.train.images).parent, root / Path(comp.test.images).parent
    first, second = sorted(train.iterdir())[:2]
    shutil.copyfile(first, test / f"copy{first.suffix}")
    picture = cv2.imread(str(second), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(test / f"twin{second.suffix}"), np.clip(picture.astype(int) + 6, 0, 255).astype(np.uint8))
    teacher = finish(open_run(tiny(2, f"competition.root={root}"), "teacher"))
    said: list[str] = []
    run = open_run(tiny(2, f"competition.root={root}", f"pseudo.from={teacher.folder}"), "tiny")
    prepare_run(run, Context(say=said.append))
    assert any("because they have labels: 1 image" in line and "validates this case: 1 image" in line for line in said)
    home = int(run.folds.loc[run.folds["id"] == second.stem, "fold"].iloc[0])
    for job in make_jobs(run):
        job.folder.mkdir()
        cases, lessons = lessons_of(load_run(run.folder), job)
        assert "copy" not in cases and ("twin" in cases) == (job.fold != home)
        assert lessons.summary["pseudo"]["left_out"] == ({"alike": 1} if job.fold == home else {})


def test_test_images_may_have_the_ids_of_training_cases(tiny, demo2d):
    """Without groups, an equal id means nothing: neither for this run nor for a run that it teaches."""
    root = copied(demo2d, Path.cwd())
    comp = tiny(2).competition
    train, test = root / Path(comp.train.images).parent, root / Path(comp.test.images).parent
    names = [path.name for path in sorted(train.iterdir())]
    for path, name in zip(sorted(test.iterdir()), names, strict=False):
        path.rename(test / name)
    settings = [f"competition.root={root}"]
    teacher = finish(open_run(tiny(2, *settings), "teacher"))
    middle, jobs = open_student(tiny(2, *settings, f"pseudo.from={teacher.folder}"), "middle")
    records = {}
    for job in jobs:
        cases, lessons = lessons_of(middle, job)
        assert len(cases) == 3 and lessons.summary["pseudo"]["left_out"] == {}
        records[job.folder] = (job.folder / "lineage.json").read_bytes()
        shutil.rmtree(job.folder)
    finish(middle)
    for folder, record in records.items():
        (folder / "lineage.json").write_bytes(record)
    run, jobs = open_student(tiny(2, *settings, f"pseudo.from={middle.folder}"))
    for job in jobs:
        assert len(lessons_of(run, job)[0]) == 3
        [used] = json.loads((job.folder / "lineage.json").read_text())["pseudo"]["teachers"]
        assert used["member"].endswith(f"/fold_{job.fold}")


def test_pseudo_labels_outside_of_the_region_are_ignored(tiny, demo2d):
    """The teachers were not trained there, so what they predict there means nothing."""
    import cv2

    root = copied(demo2d, Path.cwd())
    comp = tiny(2).competition
    for split, pattern in (("train", comp.train.images), ("test", comp.test.images)):
        (root / f"{split}_fov").mkdir()
        for path in (root / Path(pattern).parent).iterdir():
            region = np.zeros(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape[:2], np.uint8)
            region[:, :50] = 255
            cv2.imwrite(str(root / f"{split}_fov" / path.name), region)
    settings = [f"competition.root={root}", "competition.train.region=train_fov/{id}.png"]
    teacher = finish(open_run(tiny(2, *settings), "teacher"))
    whole, jobs = open_student(tiny(2, *settings, f"pseudo.from={teacher.folder}"), "whole")
    assert {int(one) for case in lessons_of(whole, jobs[0])[0].values() for one in np.unique(case.mask)} == {1}
    settings.append("competition.test.region=test_fov/{id}.png")
    run, jobs = open_student(tiny(2, *settings, f"pseudo.from={teacher.folder}"), "within")
    for case in lessons_of(run, jobs[0])[0].values():
        drawn = case.geometry.inverse(np.asarray(case.mask, np.float16))[0]
        assert (drawn[:, :50] == 1).all() and (drawn[:, 50:] == 255).all()


def test_voxels_in_doubt_are_ignored_and_cases_in_doubt_left_out(tiny):
    teacher = finish(open_run(tiny(2), "teacher"), {0: 0.72, 1: 0.6})
    wide = [f"pseudo.from={teacher.folder}", "pseudo.confidence.dice=null"]
    run, jobs = open_student(tiny(2, *wide))
    cases, lessons = lessons_of(run, jobs[0])
    assert {int(one) for case in cases.values() for one in np.unique(case.mask)} == {1}  # 0.72 is beyond 0.7
    assert lessons.summary["pseudo"]["ignored"] == 0
    with pytest.raises(MaskfoldError, match="none of the 3 images"):  # 0.6 is in doubt everywhere
        lessons_of(run, jobs[1])
    run, jobs = open_student(tiny(2, *wide, "pseudo.confidence.dice=0.85"), "strict")
    with pytest.raises(MaskfoldError, match=r"expected Dice is 0\.837"):  # 2·0.72 / (0.72 + 1)
        lessons_of(run, jobs[0])


def test_teachers_read_images_as_the_competition_of_the_images_says(tiny):
    """Voxel size and order of axes belong to the files, and the teacher's competition may have other files."""
    exp = tiny(2, "competition.spacing=[2, 2]", "competition.array_axes=xy")
    prepare = "prepare={spacing: [4, 4], intensity: none}"
    teacher = open_run(tiny(2, "competition.spacing=[8, 8]", "competition.name=other", prepare), "teacher")
    ensemble = TeacherEnsemble([], exp, Path("mlruns/prepared"), Context())
    trained = ensemble._teacher_experiment(Teacher(teacher, ((0, 0),), ()))
    assert trained.competition.array_axes == "xy" and trained.competition.name == "other"
    row = case_rows(case_table(exp.competition, "test"))[0]
    geometry = PreprocessedCase.open(preprocess_case(row, trained, ensemble.cache)).geometry
    assert geometry.file_spacing == (2, 2) and geometry.shape[0] == round(geometry.file_shape[0] / 2)


def test_several_teachers_are_averaged(tiny):
    one, two = (
        finish(open_run(tiny(2), name), sure) for name, sure in (("one", {0: 0.9, 1: 0.9}), ("two", {0: 0.1, 1: 0.9}))
    )
    run, jobs = open_student(
        tiny(2, f"pseudo.from=[{one.folder},{two.folder}]", "pseudo.confidence={lower: 0.3, upper: 0.7}")
    )
    with pytest.raises(MaskfoldError, match="none of the 3 images"):  # 0.9 and 0.1: nobody knows
        lessons_of(run, jobs[0])
    cases, _ = lessons_of(run, jobs[1])
    assert len(cases) == 3


def test_weights_say_how_often_a_case_is_drawn(tiny):
    teacher = finish(open_run(tiny(2), "teacher"))
    run, jobs = open_student(tiny(2, f"pseudo.from={teacher.folder}", "pseudo.weight=0.5"))
    training = setup_fold(jobs[0], run, Context(), 0.0)
    dataset = training.dataset
    assert len(dataset.folders) == 5 + 3 and len(dataset) == 7  # 5 + 3/2 turns, rounded up
    drawn = Counter(dataset.sampler.index_at(place, 1, 0) for place in range(2 * 13))  # 13 turns hold 5 + 5 + 3
    assert drawn == {**dict.fromkeys(range(5), 4), **dict.fromkeys(range(5, 8), 2)}


def test_a_killed_fold_finds_its_labels_again_and_ends_with_the_same_bits(tiny, monkeypatch):
    from safetensors.torch import load_file

    from competition.training.extra import pseudo_labels as module
    from tests.training.test_fold import Killed, killed_after

    teacher = finish(open_run(tiny(2), "teacher"))
    exp = tiny(2, f"pseudo.from={teacher.folder}", "training.checkpoint_minutes=0", "training.epochs=1")
    run, jobs = open_student(exp)
    asked: list[str] = []
    real = module.TeacherEnsemble.probabilities

    def counted(self, row):
        if len(asked) == 1 and "killed" not in asked:
            asked.append("killed")
            raise Killed
        asked.append(row.id)
        return real(self, row)

    monkeypatch.setattr(module.TeacherEnsemble, "probabilities", counted)
    with pytest.raises(Killed):
        run_fold(jobs[0], say=lambda line: None)
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        with pytest.raises(Killed):
            run_fold(jobs[0], say=lambda line: None)
    result = run_fold(jobs[0], say=lambda line: None)
    assert [one for one in asked if one != "killed"] == sorted(run.extra_tables["besides_pseudo"]["id"])  # each once
    assert result.lessons["pseudo"]["cases"] == 3
    other, again = open_student(exp, "other")
    run_fold(again[0], say=lambda line: None)
    one, two = (load_file(job.folder / "weights.safetensors") for job in (jobs[0], again[0]))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_fold_does_not_go_on_with_other_teachers(tiny, monkeypatch):
    from tests.training.test_fold import Killed, killed_after

    same, teacher = (finish(open_run(tiny(2), name)) for name in ("same", "teacher"))
    run, jobs = open_student(tiny(2, f"pseudo.from=[{same.folder},{teacher.folder}]", "training.checkpoint_minutes=0"))
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        with pytest.raises(Killed):
            run_fold(jobs[0], say=lambda line: None)
    network = build_network(run.exp, 1, pretrained=False)
    save_weights(teacher.member_folder(0, 0) / "weights.safetensors", network.state_dict())
    with pytest.raises(MaskfoldError, match="teachers of fold_0 have changed") as refusal:
        run_fold(jobs[0], say=lambda line: None)
    assert "of teacher/" in str(refusal.value) and "same/" not in str(refusal.value)


def test_what_a_student_has_seen_is_recorded_whole(tiny):
    teacher = finish(open_run(tiny(2), "teacher"))
    run, jobs = open_student(tiny(2, f"pseudo.from={teacher.folder}"))
    lessons_of(run, jobs[1])
    found = {(source.how, source.chain): {case[0] for case in source.cases} for source in training_cases(run, 1, 0)}
    mine = set(run.folds.loc[run.folds["fold"] != 1, "id"])
    assert found == {
        ("trained on", ()): mine,
        ("taught pseudo-labels of", ()): set(run.extra_tables["besides_pseudo"]["id"]),
        ("trained on", (f"taught by teacher/{teacher.folder.name}/fold_1",)): mine,
    }


def test_the_name_of_a_run_follows_what_it_learns_from(tiny, demo2d):
    from competition.config.loading import resolve_config

    plain = resolve_config(tiny(2))
    assert plain["pseudo"] is None and plain["extra"] is None and plain["competition"]["train"]["cases"] is None
    # As it was before there were such keys: the hash of the same tree without them, by hand.
    import hashlib

    tree = {
        key: value
        for key, value in plain.items()
        if key not in ("run", "study", "postprocess", "pseudo", "extra", "gate", "first_stage")
    }
    for key in ("cases", "masks_on_image_grid", "missing_masks", "exif", "threshold", "region", "exclude", "weights"):
        tree["competition"]["train"].pop(key)
    tree["competition"]["train"].pop("object_numbers")
    for key in ("root", "array_axes", "spacing", "background"):
        tree["competition"].pop(key)
    for key in ("kaggle", "public_share"):
        tree["competition"]["submission"].pop(key)
    for key in ("run", "duplicates"):
        tree["folds"].pop(key)
    for key in ("boundary", "rings", "stretch", "long_side", "cache_gib"):
        tree["prepare"].pop(key)
    for key in ("on_nan", "on_oom", "soup", "memory_format", "fused", "compile", "freeze_encoder"):
        tree["training"].pop(key)
    tree["optimizer"].pop("encoder_rate")
    tree["patch"].pop("axes")
    assert run_hash(tiny(2), "x") == hashlib.sha256(json.dumps([tree, "x"], sort_keys=True).encode()).hexdigest()[:12]

    teacher = finish(open_run(tiny(2), "teacher"))
    names = {
        open_run(tiny(2, *words), "tiny").folder.name
        for words in ([], [f"pseudo.from={teacher.folder}"], [f"pseudo.from={teacher.folder}", "pseudo.weight=1"])
    }
    assert len(names) == 3
    one = open_run(tiny(2, f"pseudo.from={teacher.folder}"), "tiny").folder.name
    assert (
        open_run(tiny(2, f"pseudo.from={teacher.folder.resolve()}"), "tiny").folder.name == one
    )  # the same run, longer said
    assert open_run(tiny(2, f"pseudo.from={teacher.folder.name}"), "tiny").folder.name == one


def test_words_that_make_no_sense_are_refused(tiny):
    with pytest.raises(MaskfoldError, match="`lower` must be at most `upper`"):
        tiny(2, "pseudo={from: x, confidence: {lower: 0.8, upper: 0.7}}")
    with pytest.raises(MaskfoldError, match=r"pseudo\.from: .*`nowhere`"):
        open_run(tiny(2, "pseudo.from=nowhere"), "tiny")
    teacher = finish(open_run(tiny(2), "teacher"))
    with pytest.raises(MaskfoldError, match="names the run .* twice"):
        open_run(tiny(2, f"pseudo.from=[{teacher.folder},{teacher.folder.name}]"), "tiny")
    with pytest.raises(MaskfoldError, match=r"pseudo\.images: .*`nothing/"):
        open_run(tiny(2, f"pseudo.from={teacher.folder}", "pseudo.images='nothing/{id}.png'"), "tiny")
    pattern = tiny(2).competition.train.images
    with pytest.raises(MaskfoldError, match="All 10 images for pseudo-labels have labels already"):
        open_run(tiny(2, f"pseudo.from={teacher.folder}", f"pseudo.images={pattern}"), "tiny")
    run = open_run(tiny(2, "competition.classes=[ring,other]", f"pseudo.from={teacher.folder}"), "tiny")
    with pytest.raises(MaskfoldError, match=r"has classes \['ring', 'grain'\]"):
        prepare_run(run)


def test_lessons_need_not_be_ready_twice(tiny):
    """A fold alone (on another machine) reads the tables that the run's folder has."""
    teacher = finish(open_run(tiny(2), "teacher"))
    run, jobs = open_student(tiny(2, f"pseudo.from={teacher.folder}"))
    again = load_run(run.folder)
    assert list(again.extra_tables) == ["besides_pseudo"] and "alike" in again.extra_tables["besides_pseudo"].columns
    assert sorted(lessons_of(again, jobs[0])[0]) == sorted(run.extra_tables["besides_pseudo"]["id"])


def test_no_voxel_in_doubt_has_a_gradient(tiny):
    from competition.models.losses import SegmentationLoss

    mask = torch.randint(0, 3, (2, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mask[:, :, :8] = 255
    logits = torch.zeros(2, 3, 16, 16, requires_grad=True)
    SegmentationLoss(tiny(2, "pseudo.from=x"))(logits, mask)[0].backward()
    assert logits.grad[:, :, :8].abs().max() == 0 and logits.grad[:, :, 8:].abs().max() > 0
