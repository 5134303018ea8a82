"""Experiments that build on another one with `base`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from competition.cleaning.protection import _sources
from competition.config.loading import load_experiment, resolve_config, write_yaml
from competition.config.yaml import read_yaml
from competition.errors import MaskfoldError
from competition.runs.identity.hashing import run_hash
from competition.study.space import ExperimentSource

Toy = Callable[..., Path]
REPOSITORY = Path(__file__).resolve().parents[2]
MORE = """\
training: {epochs: 7, clip_gradient: 3, steps_per_epoch: 9}
optimizer: {target: torch.optim.SGD, args: {lr: 0.1, momentum: 0.9}}
gate: {weight: 0.2}
augment: {preset: heavy, flip: [0, 1]}
"""


@pytest.fixture
def built(toy: Toy) -> Callable[..., Path]:
    """`built("seed: 3")`: the path of an experiment that is built on the toy experiment with `MORE`."""
    toy(MORE)

    def make(text: str, name: str = "own.yaml", base: str = "unet.yaml") -> Path:
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"base: {base}\n{text}")
        return path

    return make


def refused(path: Path, *words: str) -> str:
    with pytest.raises(MaskfoldError) as caught:
        load_experiment(path, words)
    assert caught.value.status == 2
    return str(caught.value)


def test_mappings_merge_and_other_values_replace(built: Callable[..., Path]) -> None:
    exp = load_experiment(built("training: {epochs: 2}\noptimizer: {args: {lr: 0.5}}\naugment: {flip: [0]}\n"))
    assert (exp.training.epochs, exp.training.steps_per_epoch, exp.training.clip_gradient) == (2, 9, 3.0)
    assert exp.optimizer.args == {"lr": 0.5, "momentum": 0.9}
    assert exp.augment.flip == [0] and exp.augment.preset == "heavy" and exp.competition.name == "toy"


def test_an_experiment_without_own_keys_equals_its_base(built: Callable[..., Path]) -> None:
    assert load_experiment(built("")) == load_experiment("unet.yaml")


def test_another_target_brings_its_own_arguments(built: Callable[..., Path]) -> None:
    exp = load_experiment(built("optimizer: {target: torch.optim.AdamW}\nmodel: {target: torch.nn.Conv2d}\n"))
    assert exp.optimizer.args == {} and exp.model.args == {"kernel_size": 3}


def test_null_is_kept_where_it_is_a_value_and_removes_elsewhere(built: Callable[..., Path]) -> None:
    text = "training: {clip_gradient: null, epochs: null}\ngate: null\naugment: null\ninference: null\n"
    exp = load_experiment(built(text + "optimizer: {args: {momentum: null}}\nloss: {args: {reduction: null}}\n"))
    assert exp.training.clip_gradient is None and exp.gate is None
    assert exp.training.epochs == 100 and exp.training.steps_per_epoch == 9
    assert exp.augment.preset == "none" and exp.inference.overlap == 0.5
    assert exp.optimizer.args == {"lr": 0.1}
    assert exp.losses[0].args == {"reduction": None}  # an argument that the base does not set


def test_the_hash_is_that_of_the_file_written_out(built: Callable[..., Path], toy: Toy) -> None:
    exp = load_experiment(built("seed: 3\ntraining: {epochs: 2}\n"))
    full = load_experiment(toy(MORE.replace("epochs: 7", "epochs: 2") + "seed: 3\n"))
    assert exp == full and run_hash(exp, "data", 2) == run_hash(full, "data", 2)


def test_the_resolved_file_has_no_base(built: Callable[..., Path], tmp_path: Path) -> None:
    exp = load_experiment(built("seed: 3\n"))
    write_yaml(resolve_config(exp), tmp_path / "resolved.yaml")
    assert "base" not in read_yaml(tmp_path / "resolved.yaml").tree
    Path("unet.yaml").unlink()
    assert load_experiment(tmp_path / "resolved.yaml") == exp


def test_chains_and_paths_are_relative_to_the_file_that_names_them(
    built: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folds.csv").write_text("id,fold\n")
    built("folds: {scheme: file, file: folds.csv}\n", "middle.yaml")
    last = built("seed: 4\n", "deeper/last.yaml", "../middle.yaml")
    monkeypatch.chdir(tmp_path / "deeper")
    exp = load_experiment(tmp_path / last)
    assert exp.seed == 4 and exp.training.epochs == 7
    assert exp.folds.file is not None and Path(exp.folds.file).resolve() == tmp_path / "folds.csv"


def test_the_competition_of_the_base_can_be_replaced_or_changed(built: Callable[..., Path], tmp_path: Path) -> None:
    text = (tmp_path / "competition.yaml").read_text()
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "other.yaml").write_text(text.replace("name: toy", "name: other"))
    replaced = built("competition: other.yaml\n", "deeper/replaced.yaml", "../unet.yaml")
    assert load_experiment(replaced).competition.name == "other"
    changed = load_experiment(built("competition: {metric: {name: iou}}\n", "deeper/changed.yaml", "../unet.yaml"))
    assert (changed.competition.metric.name, changed.competition.name) == ("iou", "toy")


def test_the_command_line_names_a_base_and_overrides_the_result(built: Callable[..., Path], toy: Toy) -> None:
    path = built("seed: 3\n", "deeper/own.yaml", "missing.yaml")
    exp = load_experiment(path, ["base=unet.yaml", "training.epochs=5", "optimizer.args.lr=0.7"])
    assert (exp.seed, exp.training.epochs, exp.optimizer.args) == (3, 5, {"lr": 0.7, "momentum": 0.9})
    complete = Path("complete.yaml")
    complete.write_text("base: missing.yaml\n" + toy().read_text())
    assert load_experiment(complete, ["base=null"]) == load_experiment(toy())


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("missing.yaml", "own.yaml, line 1: base: the file missing.yaml does not exist"),
        ("[a.yaml]", "own.yaml, line 1: base: found a list, expected the path"),
        ("''", "found empty text"),
        ("own.yaml", ": own.yaml -> own.yaml"),
        ("competition.yaml", "competition.yaml describes a competition"),
        ("broken.yaml", "broken.yaml, line 2: not valid YAML"),
        (".", "cannot be read"),
    ],
)
def test_a_base_that_cannot_be_used_is_refused(built: Callable[..., Path], base: str, expected: str) -> None:
    Path("broken.yaml").write_text("seed: 1\n  model: [\n")
    assert expected in refused(built("seed: 3\n", base=base))


def test_a_circle_of_several_files_is_refused(built: Callable[..., Path]) -> None:
    built("", "one.yaml", "two.yaml")
    built("", "two.yaml", "three.yaml")
    message = refused(built("", "three.yaml", "one.yaml"))
    assert ": three.yaml -> one.yaml -> two.yaml -> three.yaml" in message


def test_an_error_names_the_file_that_sets_the_key(built: Callable[..., Path], toy: Toy) -> None:
    toy("training: {epochs: -1}\nseed: many\n")
    message = refused(built("training: {ema: 2}\n"))
    assert "own.yaml, line 2: training.ema" in message
    assert "unet.yaml, line 7: training.epochs" in message and "unet.yaml, line 8: seed" in message


def test_a_study_finds_its_space_in_the_base(built: Callable[..., Path], toy: Toy) -> None:
    toy(MORE + "study: {trials: 3, space: {optimizer.args.lr: {low: 0.1, high: 1.0}}}\n")
    place = ExperimentSource(built("seed: 3\n")).locate("space")
    assert (place.file, place.line) == ("unet.yaml", 11)


def test_clean_keeps_the_runs_that_a_base_names(built: Callable[..., Path], toy: Toy) -> None:
    toy("init_from: 0123456789ab\n")
    assert _sources(built("seed: 3\n")) == ["0123456789ab"]
    assert _sources(built("init_from: toy/run\n", base="missing.yaml")) == ["toy/run"]


def test_the_shipped_experiments_on_a_base_are_complete() -> None:
    folder = REPOSITORY / "experiments"
    files = [path for path in sorted(folder.glob("*/*.yaml")) if "base" in read_yaml(path).tree]
    assert len(files) >= 6
    for path in files:
        exp = load_experiment(path)
        assert exp.competition.classes and exp.model.target and exp.losses
    resunet, unet = (load_experiment(folder / "hippocampus" / f"{name}.yaml") for name in ("resunet", "unet3d"))
    assert resunet.training.budget_minutes == 3 and resunet.study is None and unet.study is not None
    kept = {"training", "study", "model"}
    assert resunet.model_dump(exclude=kept) == unet.model_dump(exclude=kept)
