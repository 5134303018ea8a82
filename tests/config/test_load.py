"""Loading and writing of YAML files: paths, overrides, round trips."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from competition.config.loading import load_competition, load_experiment, resolve_config, write_yaml
from competition.errors import MaskfoldError

Toy = Callable[..., Path]
Refusal = Callable[..., str]


def test_defaults_and_both_files(toy: Toy) -> None:
    exp = load_experiment(toy("optimizer: {target: torch.optim.SGD, args: {lr: 1e-2}}\n"))
    assert exp.competition.name == "toy" and exp.competition.submission.columns.cls == "kind"
    assert exp.patch.size == [64, 64] and exp.folds.k == 5
    assert exp.optimizer.args == {"lr": 0.01}


@pytest.mark.parametrize("names", ["[Tumor, tumor]", '["\u00e9", "e\u0301"]'])
def test_classes_differ_by_more_than_case_and_unicode_form(toy: Toy, names: str) -> None:
    with pytest.raises(MaskfoldError, match="Unicode form"):
        load_experiment(toy(), [f"competition.classes={names}", "competition.label_values=[1, 2]"])


def test_nothing_changes_after_loading(toy: Toy) -> None:
    exp = load_experiment(toy())
    with pytest.raises(ValidationError):
        exp.training.epochs = 3  # type: ignore[misc]


def test_integers_do_where_numbers_are_wanted(toy: Toy) -> None:
    exp = load_experiment(toy("prepare: {spacing: [1, 2]}\ntraining: {clip_gradient: 1, ema: 0}\n"))
    assert exp.prepare.spacing == [1.0, 2.0] and exp.training.clip_gradient == 1.0


def test_the_competition_may_stand_inside(toy: Toy, tmp_path: Path) -> None:
    outside = load_experiment(toy())
    lines = (tmp_path / "competition.yaml").read_text().splitlines()
    text = "competition:\n" + "".join(f"  {line}\n" for line in lines) + toy().read_text().split("\n", 1)[1]
    (tmp_path / "inside.yaml").write_text(text)
    assert load_experiment(tmp_path / "inside.yaml") == outside


def test_the_competition_is_found_beside_the_experiment(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / toy()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_experiment(file).competition.name == "toy"


def test_root_is_looked_for_here_then_beside_the_yaml(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / toy()
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    # In neither folder: the path in the working folder, for the error message.
    assert load_experiment(file).competition.root == here / "pictures"
    (tmp_path / "pictures").mkdir()
    assert load_experiment(file).competition.root == tmp_path / "pictures"
    (here / "pictures").mkdir()
    assert load_experiment(file).competition.root == here / "pictures"
    assert load_experiment(file, ["competition.root=/data/x"]).competition.root == Path("/data/x")
    assert load_competition(tmp_path / "competition.yaml", ["root=../pictures"]).root == tmp_path / "pictures"


def test_a_home_folder_is_expanded(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load_experiment(toy(), ["competition.root=~/data"]).competition.root == Path("/home/somebody/data")


def test_other_files_are_found_beside_the_yaml(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / toy("folds: {scheme: file, file: folds.csv}\nencoder_weights: imagenet\ninit_from: old\n")
    (tmp_path / "folds.csv").write_text("id,fold\n")
    assert load_experiment(file).folds.file == "folds.csv"  # here
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    exp = load_experiment(file)
    assert exp.folds.file == str(tmp_path / "folds.csv")
    assert exp.encoder_weights == "imagenet" and exp.init_from == "old"  # no such files


@pytest.mark.parametrize(
    "more",
    [
        "",
        "seed: [1, 2]\n",
        "folds: {run: full, shares: [0.8, 0.2], scheme: holdout}\n",
        "inference: {tta: auto}\n",
        "inference: {tta: [flip, rotate90]}\n",
        "augment: {flip: false}\n",
        "augment: {flip: [0], preset: heavy}\n",
        "augment: {transforms: [{target: albumentations.Affine, args: {scale: [0.9, 1.1]}}]}\n",
        "study: {trials: 3, space: {optimizer.args.lr: {low: 1e-4, high: 1e-2, log: true}}}\n",
        "optimizer: {target: torch.optim.AdamW, args: {lr: 1.0e-5, names: [no, '1e-3', '010', 2020-01-01, ''], "
        "deep: {1: {a: [[]]}}}}\n",
        "training: {plan: [[0, 10], [3, 7]], budget_minutes: 0.5}\n",
        "early_stopping: {all_classes_at_least: 0.7}\n",
    ],
)
def test_resolved_loads_again(toy: Toy, more: str, tmp_path: Path) -> None:
    exp = load_experiment(toy(more))
    plain = resolve_config(exp)
    assert plain["competition"]["submission"]["columns"] == {"id": "id", "class": "kind", "mask": "rle"}
    assert plain["competition"]["root"] == str(tmp_path / "pictures")
    folder = tmp_path / "run"
    folder.mkdir()
    write_yaml(plain, folder / "experiment.yaml")
    again = load_experiment(folder / "experiment.yaml")
    assert again == exp
    assert resolve_config(again) == plain


def test_several_losses_load_again(toy: Toy, tmp_path: Path) -> None:
    exp = load_experiment(toy(), ["loss=[{target: torch.nn.MSELoss, weight: 2, name: a}, {target: torch.nn.L1Loss}]"])
    write_yaml(resolve_config(exp), tmp_path / "again.yaml")
    assert load_experiment(tmp_path / "again.yaml") == exp
    assert [loss.weight for loss in exp.losses] == [2.0, 1.0]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["training.epochs=3"], lambda exp: exp.training.epochs == 3),
        (["training.epochs=3", "training.epochs=4"], lambda exp: exp.training.epochs == 4),
        (["folds.run=[0,1]"], lambda exp: exp.folds.run == [0, 1]),
        (["folds.run=[0,1]", "folds.run.1=3"], lambda exp: exp.folds.run == [0, 3]),
        (["patch.size.0=32"], lambda exp: exp.patch.size == [32, 64]),
        (["patch.size[1]=32"], lambda exp: exp.patch.size == [64, 32]),
        (["loss=[{target: torch.nn.L1Loss}]", "loss.0.weight=2"], lambda exp: exp.losses[0].weight == 2.0),
        (["model.args.dropout=0.2"], lambda exp: exp.model.args == {"kernel_size": 3, "dropout": 0.2}),
        (["model.args.new.deep=1e-3"], lambda exp: exp.model.args["new"] == {"deep": 0.001}),
        (["model.args={}"], lambda exp: exp.model.args == {}),
        (["model.args.kernel_size=null"], lambda exp: exp.model.args == {"kernel_size": None}),
        (["model.args.name="], lambda exp: exp.model.args["name"] is None),
        (["model.args.name='='"], lambda exp: exp.model.args["name"] == "="),
        (["model.args.name=a=b"], lambda exp: exp.model.args["name"] == "a=b"),
        (["model.args.name=???"], lambda exp: exp.model.args["name"] == "???"),
        (["model.args.on=no"], lambda exp: exp.model.args["on"] == "no"),
        (
            ["optimizer.args.lr=3"],
            lambda exp: exp.optimizer.target == "torch.optim.AdamW" and exp.optimizer.args == {"lr": 3},
        ),
        (["optimizer.target=torch.optim.SGD"], lambda exp: exp.optimizer.target == "torch.optim.SGD"),
        (["early_stopping.patience=3"], lambda exp: exp.early_stopping.patience == 3),
        (["competition.metric.name=iou"], lambda exp: exp.competition.metric.name == "iou"),
        (["competition.submission.columns.class=null"], lambda exp: exp.competition.submission.columns.cls is None),
        (
            ["study={space: {optimizer.args.lr: {low: 1, high: 3}}}", "study.space[optimizer.args.lr].low=2"],
            lambda exp: (exp.study.space["optimizer.args.lr"].low, exp.study.space["optimizer.args.lr"].high) == (2, 3),
        ),
    ],
)
def test_any_key_can_be_set(words: list[str], found: Callable[..., bool], toy: Toy) -> None:
    exp = load_experiment(toy(), words)
    assert found(exp), exp


def test_another_competition_can_be_named(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / toy()
    other = (tmp_path / "competition.yaml").read_text()
    (tmp_path / "other.yaml").write_text(other.replace("toy", "beside"))
    # whatever the order, keys are set in the competition that is named
    assert load_experiment(file, ["competition.dimensions=2", "competition=other.yaml"]).competition.name == "beside"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert load_experiment(file, ["competition=other.yaml"]).competition.name == "beside"
    Path("other.yaml").write_text(other.replace("toy", "here"))
    assert load_experiment(file, ["competition=other.yaml"]).competition.name == "here"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("training.epochs", ["`training.epochs`", "key=value"]),
        ("=3", ["key=value"]),
        ("a..b=3", ["key=value"]),
        ("training epochs=3", ["key=value"]),
        ("training.epochs =3", ["key=value"]),
        ("--new=3", ["--new is not a known key"]),
        ("seed=[", ["not valid YAML", "`seed=[`"]),
        ("competition.train.masks=*.png", ["not valid YAML", "quotes"]),
        ("seed=!!python/object/apply:os.getcwd []", ["!!python/object/apply:os.getcwd"]),
        ("encoder_weights=${oc.env:HOME}", ["${oc.env:HOME}"]),
        ("encoder_weights=${", ["interpolation"]),
        ("study={a: 1, a: 2}", ["duplicate key `a`"]),
        ("patch.size.2=3", ["patch.size is a list of 2 items"]),
        ("patch.size.x=3", ["patch.size is a list of 2 items"]),
        ("patch.size.-1=3", ["patch.size is a list of 2 items"]),
        ("training.epoch=3", ["training.epoch is not a known key", "nearest: epochs"]),
        ("trainig.epochs=3", ["trainig is not a known key", "nearest: training"]),
        ("training.epochs=1e1", ["training.epochs: expected an integer, found 10.0"]),
        ("seed.x=1", ["seed: expected an integer or a list of integers"]),
        ("competition=none.yaml", ["none.yaml does not exist"]),
        ("model.target=os.system", ["model.target", "not in a trusted"]),
    ],
)
def test_errors_in_words_name_the_command_line(word: str, expected: list[str], refusal: Refusal) -> None:
    said = refusal("", word)
    assert said.startswith("command line: ")
    assert "unet.yaml" not in said
    for text in expected:
        assert text in said


def test_the_environment_cannot_be_read(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    for load in (
        lambda: load_experiment(toy(), ["model.args.x=${oc.env:SECRET}"]),
        lambda: load_experiment(toy("encoder_weights: ${oc.env:SECRET}\n"), ["seed=1"]),
    ):
        with pytest.raises(MaskfoldError) as caught:
            load()
        assert "hunter2" not in str(caught.value)


def test_the_other_kind_of_file_is_recognised(toy: Toy) -> None:
    file = toy()
    with pytest.raises(MaskfoldError, match="describes a competition, not an experiment"):
        load_experiment("competition.yaml")
    with pytest.raises(MaskfoldError, match="describes an experiment, not a competition"):
        load_competition(file)


def test_trust_is_asked_for_before_anything_is_imported(
    toy: Toy, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "unet.yaml, line 7: optimizer.target: `mine.Opt`" in refusal("optimizer: {target: mine.Opt}")
    assert "augment.transforms.0.target" in refusal("augment: {transforms: [{target: mine.T}]}")
    assert "loss.1.target" in refusal("", "loss=[{target: torch.nn.L1Loss}, {target: mine.Loss}]")
    assert "loss.target" in refusal("", "loss={target: mine.Loss}")
    file = toy("optimizer: {target: mine.Opt}")
    assert load_experiment(file, trust=["mine"]).optimizer.target == "mine.Opt"
    assert load_experiment(file, trust=None).optimizer.target == "mine.Opt"  # only reading
    monkeypatch.setenv("MASKFOLD_TRUST", "other, mine")
    assert load_experiment(file).optimizer.target == "mine.Opt"


def test_loading_is_light(toy: Toy) -> None:
    """The command line loads before it does anything; torch alone takes seconds."""
    code = (
        "import sys; from competition.config.loading import load_experiment; load_experiment(sys.argv[1], ['seed=3']);"
        "heavy = ('torch', 'monai', 'numpy', 'pandas', 'mlflow', 'albumentations');"
        "print([name for name in heavy if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run(
        [sys.executable, "-c", code, str(toy().resolve())], cwd=root, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
