"""What names a run: its YAML, its cases, and the content of the files that the YAML names; edits are noticed."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import competition.data.splits
from competition.config.competition import RleConfig
from competition.data.rle.tables import keep_table_format, rle_format
from competition.errors import MaskfoldError
from competition.runs.find import find_run, with_current_settings
from competition.runs.fold import FoldResult, mixed_environments
from competition.runs.identity.contents import (
    CONTENTS_FILE,
    FOLDS_KEY,
    RunRecord,
    package_digest,
    run_contents,
    source_digests,
)
from competition.runs.identity.hashing import run_hash
from competition.runs.run import Run, load_run
from competition.training.cross_validate import make_jobs, open_run, prepare_run
from competition.training.fold import load_run_for_job, run_fold

CODE = "import torch\n\n\nclass Net(torch.nn.Conv2d):\n    def __init__(self):\n        super().__init__(1, 3, 1)\n"
OWN_NET = "model={target: own_code.net.Net}"


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def name_of(tiny: Callable[..., Any]) -> Callable[..., str]:
    """`name_of("folds.k=3")`: the hash of the run of an experiment; nothing is written."""
    return lambda *overrides: open_run(tiny(2, *overrides, trust=("own_code",)), "tiny").folder.name


def finish(run: Run, fold: int, **values: Any) -> FoldResult:
    """Write the result of a fold that was not trained."""
    plain = {"score": 0.5, "dice": {}, "epochs": 1, "steps": 1, "minutes": 1.0, "peak_gib": 1.0, "threads": 1}
    words = {"precision": "32-true", "device": "cpu", "torch": "2.7.1", "stopped": ""}
    result = FoldResult(**{"fold": fold, "seed": 0, **plain, **words, **values})
    run.member_folder(fold, 0).mkdir(parents=True, exist_ok=True)
    result.write(run.member_folder(fold, 0))
    return result


def write_old_run(run: Run, with_record: bool = False) -> Run:
    """Write the run's folder as a version did that knew only the first hash, optionally with today's record."""
    assert run.record is not None
    old = dataclasses.replace(
        run, folder=run.folder.with_name(run.record.names["1"]), record=run.record if with_record else None
    )
    old.write()
    return old


def write_folds(run: Run, moved: int = 0) -> Path:
    """Write a fold file with the first cases moved to the other fold."""
    path = Path("folds.csv")
    ids = run.folds["id"].tolist()
    numbers = [number % 2 if number >= moved else 1 - number % 2 for number in range(len(ids))]
    path.write_text("id,fold\n" + "".join(f"{case},{number}\n" for case, number in zip(ids, numbers, strict=True)))
    return path


def write_own_code() -> Path:
    """Write a package of the user's into the working folder; return the file of its network."""
    Path("own_code").mkdir()
    Path("own_code/__init__.py").touch()
    Path("own_code/net.py").write_text(CODE)
    return Path("own_code/net.py")


# The hash


def test_keys_that_change_no_result_are_in_no_name(tiny, name_of):
    name = name_of()
    for words in (
        ["competition.test=null"],
        ["competition.test={images: 'elsewhere/{id}.png'}"],
        ["competition.submission={sample: other.csv, columns: {id: name}, rle: {order: row}, profile: airbus}"],
        ["training.checkpoint_minutes=7"],
        ["training.pictures_every=3"],
    ):
        assert name_of(*words) == name, words
        assert run_hash(tiny(2, *words), "data") != run_hash(tiny(2), "data")  # as in version 1
    assert name_of("inference.batch_size=1") != name  # predictions differ in their last bits
    assert name_of("training.epochs=3") != name


def test_what_reads_the_training_table_is_in_the_name(tiny):
    def named(**submission: Any) -> str:
        exp = tiny(2)
        train = exp.competition.train.model_copy(update={"masks": None, "rle": "train.csv"})
        comp = exp.competition.model_copy(update={"train": train})
        plain = comp.submission.model_dump(by_alias=True)
        comp = comp.model_copy(update={"submission": type(comp.submission).model_validate({**plain, **submission})})
        return run_hash(exp.model_copy(update={"competition": comp}), "data", 2)

    name = named()
    assert named(rle={"order": "row"}) != name and named(profile="airbus-ship-detection") != name
    assert named(sample="other.csv", columns={"id": "name"}, kaggle="toy") == name


def test_the_hash_of_version_2_stays(tiny):
    contents = {FOLDS_KEY: "f", "code of own_code": "version 1.0"}
    exp = tiny(2, "inference.tta=auto")
    exp = exp.model_copy(update={"competition": exp.competition.model_copy(update={"root": Path("/x")})})
    assert run_hash(exp, "data", 2, contents) == "ba7b460439e1"


def test_other_folds_in_the_fold_file_are_another_run(tiny, name_of):
    run = open_run(tiny(2), "tiny")
    words = ("folds={scheme: file, file: folds.csv}",)
    path = write_folds(run)
    name = name_of(*words)
    path.write_text(path.read_text().replace("\n", "\r\n"))
    assert name_of(*words) == name  # the same folds
    path.rename("other.csv")
    assert name_of("folds={scheme: file, file: other.csv}") == name
    write_folds(run, moved=3)
    assert name_of(*words) != name


def test_other_weights_in_the_file_are_another_run(name_of):
    save_file({"x": torch.zeros(2)}, "encoder.safetensors")
    name = name_of("encoder_weights=encoder.safetensors")
    Path("encoder.safetensors").rename("moved.safetensors")
    assert name_of("encoder_weights=moved.safetensors") == name != name_of()
    save_file({"x": torch.ones(2)}, "moved.safetensors")
    assert name_of("encoder_weights=moved.safetensors") != name
    with pytest.raises(MaskfoldError, match="encoder_weights: encoder.safetensors does not exist"):
        name_of("encoder_weights=encoder.safetensors")


def test_a_file_in_the_arguments_of_the_user_s_own_class_counts(name_of):
    write_own_code()
    words = "model={target: own_code.net.Net, args: {table: [{file: prior.bin}]}}"
    Path("prior.bin").write_bytes(b"1")
    name = name_of(words)
    Path("prior.bin").write_bytes(b"2")
    assert name_of(words) != name


@pytest.mark.parametrize(
    "words",
    [
        OWN_NET,
        "loss=[{target: torch.nn.BCELoss}, {target: own_code.net.Loss}]",
        "optimizer={target: own_code.net.Optimizer}",
        "augment={transforms: [{target: albumentations.OneOf, args: {transforms: [{target: own_code.net.Turn}]}}]}",
        "competition.metric={target: own_code.net.score}",
    ],
)
def test_other_code_of_the_user_s_is_another_run(name_of, words):
    file = write_own_code()
    name = name_of(words)
    assert name_of(words) == name
    file.write_text(CODE + "# changed\n")
    changed = name_of(words)
    assert changed != name
    Path("own_code/more").mkdir()
    Path("own_code/more/inside.py").touch()
    assert name_of(words) not in (name, changed)
    Path("own_code/notes.txt").write_text("not code")
    Path("own_code/more/inside.py").unlink()
    assert name_of(words) == changed
    assert "own_code" not in sys.modules  # only read, never imported


def test_a_package_is_its_version_if_it_is_installed(monkeypatch, tmp_path):
    import numpy

    assert package_digest("numpy") == f"version {numpy.__version__}"
    assert package_digest("no_such_package_anywhere") is None
    Path("own_module.py").write_text("x = 1\n")
    first = package_digest("own_module")
    assert first is not None and first.startswith("sha256 ")
    Path("own_module.py").write_text("x = 2\n")
    assert package_digest("own_module") != first
    # A copy elsewhere on the path, as an editable installation has it, is code and not a version.
    (tmp_path / "elsewhere" / "numpy_copy").mkdir(parents=True)
    (tmp_path / "elsewhere" / "numpy_copy" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    assert str(package_digest("numpy_copy")).startswith("sha256 ")


def test_a_linked_subpackage_counts(tmp_path):
    for folder in ("own_linked", "elsewhere"):
        Path(folder).mkdir()
        Path(folder, "__init__.py").touch()
    first = package_digest("own_linked")
    Path("own_linked", "inner").symlink_to(Path("elsewhere").absolute())
    Path("elsewhere", "round").symlink_to(Path("own_linked").absolute())  # no end
    second = package_digest("own_linked")
    Path("elsewhere", "__init__.py").write_text("x = 1\n")
    assert len({first, second, package_digest("own_linked")}) == 3


# Runs of the first version


def test_a_run_of_the_first_version_keeps_its_name(tiny):
    run = open_run(tiny(2), "tiny")
    assert run.record is not None and run.folder.name == run.record.names["2"] != run.record.names["1"]
    assert run.record.names["1"] == run_hash(run.exp, run.record.data)
    old = write_old_run(run)
    assert open_run(tiny(2), "tiny").folder == old.folder
    assert open_run(tiny(2), "tiny", new=True).folder.name == f"{old.folder.name}-2"
    assert open_run(tiny(2, "training.pictures_every=3"), "tiny").folder == run.folder  # another name in version 1
    assert load_run(old.folder).record is None


@pytest.mark.parametrize("with_record", [False, True])
def test_a_fold_file_that_changed_under_a_run_is_refused(tiny, with_record):
    """Three cases moved after fold 0 had finished: 9 of 12 cases were scored, without a word."""
    exp = tiny(2, f"folds={{scheme: file, file: {write_folds(open_run(tiny(2), 'tiny'))}}}")
    old = write_old_run(open_run(exp, "tiny"), with_record)
    finish(old, 0)
    before = (old.folder / "folds.csv").read_bytes()
    write_folds(old, moved=3)
    again = open_run(exp, "tiny")
    assert again.folder == old.folder
    for _ in range(2):
        with pytest.raises(MaskfoldError, match=r"The fold file folds.csv changed after the run .* was started.*--new"):
            prepare_run(again)
        assert (old.folder / "folds.csv").read_bytes() == before
        finish(old, 1)  # a finished run is not summarised either
    write_folds(old)
    prepare_run(open_run(exp, "tiny"))


def test_weights_and_code_that_changed_under_a_run_are_refused(tiny):
    save_file({"x": torch.zeros(2)}, "encoder.safetensors")
    file = write_own_code()
    exp = tiny(2, "encoder_weights=encoder.safetensors", OWN_NET, trust=("own_code",))
    old = write_old_run(open_run(exp, "tiny"), with_record=True)
    finish(old, 0)
    finish(old, 1)
    prepare_run(open_run(exp, "tiny"))
    save_file({"x": torch.ones(2)}, "encoder.safetensors")
    with pytest.raises(MaskfoldError, match=r"encoder_weights: the file encoder.safetensors changed after the run"):
        prepare_run(open_run(exp, "tiny"))
    Path("encoder.safetensors").unlink()
    prepare_run(open_run(exp, "tiny"))  # the folds that are finished do not need it
    file.write_text(CODE + "# changed\n")
    with pytest.raises(MaskfoldError, match=r"The code of own_code \(.*own_code\) changed after the run"):
        prepare_run(open_run(exp, "tiny"))


def test_a_fold_notices_code_that_changed_while_another_one_trained(tiny):
    file = write_own_code()
    run = open_run(tiny(2, OWN_NET, trust=("own_code",)), "tiny")
    run.write()
    job = dataclasses.replace(make_jobs(run)[1], trust=("own_code",), threads=torch.get_num_threads())
    load_run_for_job(job)
    file.write_text(CODE + "# changed\n")
    with pytest.raises(MaskfoldError, match="The code of own_code"):
        load_run_for_job(job)


def test_later_commands_remark_on_code_that_changed(tiny):
    file = write_own_code()
    run = open_run(tiny(2, OWN_NET, trust=("own_code",)), "tiny")
    run.write()
    finish(run, 0)
    notes: list[str] = []
    find_run(str(run.folder), trust=("own_code",), say=notes.append)
    assert notes == []
    file.write_text(CODE + "# changed\n")
    find_run(str(run.folder), trust=("own_code",), say=notes.append)
    assert len(notes) == 1 and "The code of own_code" in notes[0]


def test_weights_of_another_run_that_changed_are_refused(tiny):
    source = open_run(tiny(2, "seed=5"), "source")
    source.write()
    for fold in (0, 1):
        finish(source, fold)
        save_file({"x": torch.zeros(2)}, source.member_folder(fold, 0) / "weights.safetensors")
    exp = tiny(2, f"init_from={source.folder}")
    run = open_run(exp, "tiny")
    assert open_run(tiny(2, f"init_from={source.folder.resolve()}"), "tiny").folder == run.folder
    sources = source_digests(exp)
    assert list(sources) == [f"source/{source.folder.name}/fold_{fold}/weights.safetensors" for fold in (0, 1)]
    dataclasses.replace(run, record=dataclasses.replace(run.record, sources=sources)).write()
    save_file({"x": torch.ones(2)}, source.member_folder(1, 0) / "weights.safetensors")
    with pytest.raises(MaskfoldError, match=f"The weights source/{source.folder.name}/fold_1.* changed after the run"):
        prepare_run(open_run(exp, "tiny"))
    with pytest.raises(MaskfoldError, match=f"The weights source/{source.folder.name}/fold_1.* changed after the run"):
        load_run_for_job(make_jobs(run)[0])  # a fold that begins after other folds
    save_file({"x": torch.zeros(2)}, source.member_folder(1, 0) / "weights.safetensors")
    save_file({"x": torch.ones(2)}, source.member_folder(1, 0) / "best.safetensors")  # nothing reads it
    threads = torch.get_num_threads()
    load_run_for_job(dataclasses.replace(make_jobs(run)[0], threads=threads))


# Edited folders


def edit(file: Path, change: Callable[[Any], object]) -> None:
    plain = yaml.safe_load(file.read_text())
    change(plain)
    file.write_text(yaml.safe_dump(plain))


@pytest.mark.parametrize("version", [1, 2])
def test_an_edited_yaml_in_the_run_s_folder_is_refused(tiny, version):
    run = open_run(tiny(2), "demo2d-unet2d")
    run = write_old_run(run) if version == 1 else run
    run.write()
    for fold in (0, 1):
        finish(run, fold)
    file = run.folder / "experiment.yaml"
    edit(file, lambda plain: plain["run"].update(threads=2))
    edit(file, lambda plain: plain["competition"].update(root="/moved"))
    for word in (str(run.folder), run.folder.name, "unet2d.yaml"):
        if word == "unet2d.yaml":
            Path(word).write_text(file.read_text())
        find_run(word)
    former = yaml.safe_load(file.read_text())["inference"]["overlap"]
    edit(file, lambda plain: plain["inference"].update(overlap=0.1))
    for word in (str(run.folder), run.folder.name, "unet2d.yaml"):
        with pytest.raises(MaskfoldError, match=r"experiment.yaml .*was changed after the run was started"):
            find_run(word)
    with pytest.raises(MaskfoldError, match="was changed after the run was started"):
        find_run(str(run.folder), ["inference.overlap=0.7"])
    edit(file, lambda plain: plain["inference"].update(overlap=former))
    find_run(str(run.folder), ["inference.overlap=0.1"])  # an override is no edit


def test_an_edited_folder_that_was_moved_is_refused_if_it_has_a_record(tiny):
    run = open_run(tiny(2), "tiny")
    run.write()
    run.folder.rename("a run")
    load_run(Path("a run"))
    edit(Path("a run/experiment.yaml"), lambda plain: plain.update(seed=99))
    with pytest.raises(MaskfoldError, match="experiment.yaml in a run was changed"):
        load_run(Path("a run"))


def test_the_record_of_another_run_is_refused(tiny):
    run, other = open_run(tiny(2), "tiny"), open_run(tiny(2, "seed=99"), "tiny")
    run.write()
    other.write()
    for name in ("experiment.yaml", CONTENTS_FILE, "folds.csv"):
        (run.folder / name).write_bytes((other.folder / name).read_bytes())
    with pytest.raises(MaskfoldError, match=r"contents.json \(or the name of its folder\) in"):
        load_run(run.folder)
    (run.folder / CONTENTS_FILE).unlink()
    with pytest.raises(MaskfoldError, match="was changed after the run was started"):
        load_run(run.folder)


@pytest.mark.parametrize("file", ["cases.csv", "folds.csv"])
def test_an_edited_table_is_refused(tiny, file):
    run = open_run(tiny(2), "tiny")
    run.write()
    path = run.folder / file
    text = path.read_text()
    first = run.cases["hash"].iloc[0]
    path.write_text(text.replace(first, "0" * 64) if file == "cases.csv" else text.replace(",0,", ",1,", 1))
    with pytest.raises(MaskfoldError, match=f"{file} in .* was changed after the run was started"):
        load_run(run.folder)


def test_a_run_without_some_cases_is_read(tiny):
    run = open_run(tiny(2), "tiny")
    run.without_cases({run.cases["id"].iloc[0]: "it is torn"}).write()
    assert len(load_run(run.folder).cases) == len(run.cases) - 1
    edit(run.folder / "experiment.yaml", lambda plain: plain.update(seed=99))
    with pytest.raises(MaskfoldError, match="experiment.yaml in"):
        load_run(run.folder)


@pytest.mark.parametrize("skips", [False, True])
def test_an_edit_in_any_column_is_refused_by_all_commands(tiny, skips):
    exp = tiny(2, *(["competition.on_bad_case=skip"] if skips else []))
    opened = open_run(exp, "tiny")
    (opened.without_cases({opened.cases["id"].iloc[0]: "it is torn"}) if skips else opened).write()
    finish(opened, 0)
    edits = {
        "cases.csv": {"masks": None, "shape": "[9, 9]", "spacing": "[9.0, 9.0]", "channels": "9", "slices": "[9.0]"},
        "folds.csv": {"fold": "1", "group": "7"},
    }
    for file, values in edits.items():
        path = opened.folder / file
        before = path.read_bytes()
        path.write_bytes(before.replace(b"\n", b"\r\n"))
        load_run(opened.folder)  # other line ends are no edit
        for column, value in values.items():
            path.write_bytes(before)
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
            table[column] = table[column] + " " if value is None else value
            table.to_csv(path, index=False)
            edited = path.read_bytes()
            with pytest.raises(MaskfoldError, match=f"{file} in .* was changed after the run was started"):
                load_run(opened.folder)
            with pytest.raises(MaskfoldError, match=f"{file} in .* was changed after the run was started"):
                prepare_run(opened)
            assert path.read_bytes() == edited
        path.write_bytes(before)
    assert load_run(opened.folder).fold_of() and open_run(exp, "tiny").folder == opened.folder


def test_a_list_of_skipped_cases_does_not_hide_an_edit(tiny):
    run = open_run(tiny(2), "tiny")
    run.write()
    (run.folder / "skipped.csv").write_text("id,reason\nnobody,none\n")
    path = run.folder / "folds.csv"
    path.write_text(path.read_text().replace(",0,", ",1,", 1))
    with pytest.raises(MaskfoldError, match="folds.csv in .* was changed after the run was started"):
        load_run(run.folder)


def test_a_case_that_could_not_be_prepared_once_does_not_look_like_an_edit(tiny):
    run = open_run(tiny(2), "tiny")
    run.without_cases({run.cases["id"].iloc[0]: "out of memory"}).write()
    assert len(load_run(run.folder).cases) == len(run.cases) - 1
    open_run(tiny(2), "tiny").write()  # now it can be
    assert len(load_run(run.folder).cases) == len(run.cases)


def test_groups_that_the_competition_knows_are_not_split_again(tiny, monkeypatch):
    """A split of strata reads all masks."""
    words = ("competition.group='(.)$'", "folds.scheme=group", "folds.k=2")
    prepare_run(open_run(tiny(2, *words), "tiny"))
    splits = []
    real = competition.data.splits.split
    monkeypatch.setattr("competition.data.splits.split", lambda *args: splits.append(1) or real(*args))
    open_run(tiny(2, *words), "tiny")
    assert splits == [1]


def test_a_run_that_is_continued_keeps_its_tables_and_their_record(tiny):
    prepare_run(open_run(tiny(2), "tiny"))
    folder = open_run(tiny(2), "tiny").folder
    files = {name: (folder / name).read_bytes() for name in (CONTENTS_FILE, "cases.csv", "folds.csv")}
    (folder / "folds.csv").unlink()  # a table that is missing is written again
    prepare_run(open_run(tiny(2), "tiny"))
    assert {name: (folder / name).read_bytes() for name in files} == files
    record = json.loads(files[CONTENTS_FILE])
    del record["tables"]  # as in 0.1
    (folder / CONTENTS_FILE).write_text(json.dumps(record))
    assert load_run(folder).record is not None
    prepare_run(open_run(tiny(2), "tiny"))
    assert (folder / CONTENTS_FILE).read_bytes() == files[CONTENTS_FILE]


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"names": 1, "data": "", "contents": {}}', '{"names": {"1": 2}}']
)
def test_a_damaged_record_is_an_error(tiny, content):
    run = open_run(tiny(2), "tiny")
    run.write()
    (run.folder / CONTENTS_FILE).write_text(content)
    with pytest.raises(MaskfoldError, match=f"{CONTENTS_FILE} is damaged"):
        load_run(run.folder)


def test_a_record_of_a_stranger_s_imports_nothing_and_is_no_traceback(tiny):
    write_own_code()
    Path("own_code/__init__.py").write_text("import os\nos.mkdir('evil')\n")
    run = open_run(tiny(2), "tiny")
    run.write()
    record = json.loads((run.folder / CONTENTS_FILE).read_text())
    for key in ("code of own_code.net", "loss.x", "loss.99", "model.target.args", "seed.0", "..", ""):
        record["contents"][key] = "0"
    (run.folder / CONTENTS_FILE).write_text(json.dumps(record))
    finish(run, 0)
    find_run(str(run.folder))  # the hash of version 1 is still that of the YAML
    assert package_digest("own_code.net") is None and package_digest("../own_code") is None
    assert not Path("evil").exists() and "own_code" not in sys.modules


def test_the_record_keeps_what_it_has(tiny):
    run = open_run(tiny(2), "tiny")
    run.write()
    before = (run.folder / CONTENTS_FILE).read_bytes()
    assert json.loads(before)["contents"] == run_contents(run.exp, run.folds)
    later = open_run(tiny(2, "training.pictures_every=3"), "tiny")
    assert later.folder == run.folder and later.record != run.record
    later.write()
    assert (run.folder / CONTENTS_FILE).read_bytes() == before
    record = RunRecord.read(run.folder)
    assert record is not None and record == load_run(run.folder).record
    assert dataclasses.replace(record, tables={}) == run.record and list(record.tables) == ["cases.csv", "folds.csv"]
    assert load_run(run.folder).exp == later.exp


# Folds of different environments


def test_folds_of_different_environments_are_remarked_on(tiny):
    run = open_run(tiny(2, "folds.k=3"), "tiny")
    same = [finish(run, fold, device=f"cuda:{fold}") for fold in (0, 1)]
    assert mixed_environments(same) == mixed_environments([]) == []
    results = [*same, finish(run, 2, torch="2.8.0", precision="bf16-mixed", device="cpu")]
    assert mixed_environments(results) == [
        "the folds were trained with different versions of torch: 2.7.1 (fold 0, fold 1), 2.8.0 (fold 2)",
        "the folds were trained with different kinds of device: cuda (fold 0, fold 1), cpu (fold 2)",
        "the folds were trained with different precisions: 32-true (fold 0, fold 1), bf16-mixed (fold 2)",
    ]


def test_checkpoints_and_pictures_do_not_change_the_weights(tiny):
    threads = torch.get_num_threads()

    def train(name: str, *words: str) -> dict[str, torch.Tensor]:
        run = open_run(tiny(2, "folds.run=[0]", "training.steps_per_epoch=2", "inference.tta=[]", *words), name)
        run.write()
        job = dataclasses.replace(make_jobs(run)[0], threads=1)
        job.folder.mkdir(parents=True)
        run_fold(job, say=lambda line: None)
        return load_file(job.folder / "weights.safetensors")

    try:
        plain = train("one")
        often = train("two", "training.checkpoint_minutes=0", "training.pictures_every=1")
    finally:
        torch.set_num_threads(threads)
    assert plain.keys() == often.keys() and all(torch.equal(plain[name], often[name]) for name in plain)


def test_the_format_of_a_training_table_stays_that_of_the_run(tiny):
    """Without `train.rle_format`, a training table has the format of the submission, which may change for the test."""
    exp = tiny(2)
    train = exp.competition.train.model_copy(update={"masks": None, "rle": "train.csv"})
    comp = exp.competition.model_copy(update={"train": train})
    rows = exp.competition.submission.model_copy(update={"rle": RleConfig(order="row")})
    trained, current = (
        exp.model_copy(update={"competition": one}) for one in (comp, comp.model_copy(update={"submission": rows}))
    )
    assert rle_format(trained.competition).order == "column" and rle_format(current.competition).order == "row"
    used = with_current_settings(trained, current).competition
    assert rle_format(used).order == "column" and used.submission.rle.order == "row"
    assert with_current_settings(trained, trained).competition == trained.competition
    own = comp.train.model_copy(update={"rle_format": RleConfig(order="row", base=0)})
    assert keep_table_format(comp.model_copy(update={"train": own}), comp).train == own, "changed on purpose"
