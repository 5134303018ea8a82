"""`maskfold plan`: what it changes in an existing experiment, and what it leaves as the user wrote it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from competition.config.loading import load_competition, load_experiment
from competition.config.yaml import parse_yaml, read_yaml
from competition.errors import MaskfoldError
from competition.explore import explore
from competition.planning import plan as planning
from competition.planning.init import Initialised
from competition.planning.lines import Line
from competition.planning.replan import Replanned, flatten, merge, plan_file, replan, split_blocks, write
from tests.host import write_text
from tests.planning.phantoms import IDS, decathlon, paired_names
from tests.planning.test_rules import machine

Start = Callable[..., Initialised]
TEXT = """# title
competition: competition.yaml
# my reason
run: {threads: 1}   # mine
training:
  batch_size: 2     # planned
  accumulate: 3     # mine
inference: {overlap: 0.5, store: uint8}
loss: {target: monai.losses.DiceLoss}
"""


def again(done: Initialised, monkeypatch: pytest.MonkeyPatch, minutes: float | None, seconds: float = 1.0) -> Replanned:
    measured = machine(seconds)
    monkeypatch.setattr(
        "competition.planning.replan.make_plan",
        lambda exploration, options, say: planning.make_plan(exploration, options, say, measured),
    )
    assert done.experiment is not None
    words = ["run.threads=1"]
    return replan(done.experiment, words, minutes, (), lambda _: done.exploration, lambda _: None)


def test_sections_without_a_plan_keep_their_text() -> None:
    lines = [
        Line(("training", "batch_size"), 8, "why"),
        Line(("inference",), {"overlap": 0.25, "tta": []}, "why"),
        Line(("loss",), {"target": "torch.nn.BCEWithLogitsLoss"}),
        Line(("patch",), {"size": [32, 32]}),
    ]
    text = merge(TEXT, parse_yaml(TEXT).tree, lines)
    tree = parse_yaml(text).tree
    assert text.startswith("# title\ncompetition: competition.yaml\n# my reason\nrun: {threads: 1}   # mine\n")
    assert tree["training"] == {"batch_size": 8, "accumulate": 3} and tree["patch"] == {"size": [32, 32]}
    assert tree["inference"] == {"overlap": 0.25, "tta": [], "store": "uint8"}
    assert tree["loss"] == {"target": "torch.nn.BCEWithLogitsLoss"}


def test_a_network_without_encoder_drops_its_weights() -> None:
    text = "encoder_weights: imagenet\nmodel: {target: a.B}\n"
    merged = merge(text, parse_yaml(text).tree, [Line(("model", "target"), "c.D")])
    assert parse_yaml(merged).tree == {"model": {"target": "c.D"}}


def test_a_grid_replaces_another_grid() -> None:
    text = "prepare: {resize: [64, 64], stretch: true, cache_gib: 2}\n"
    merged = merge(text, parse_yaml(text).tree, [Line(("prepare", "long_side"), 96, "why")])
    assert parse_yaml(merged).tree == {"prepare": {"long_side": 96, "cache_gib": 2}}


def test_blocks_are_the_whole_text() -> None:
    blocks = split_blocks(TEXT)
    assert "".join(block for _, block in blocks) == TEXT
    assert [key for key, _ in blocks] == ["", "competition", "run", "training", "inference", "loss"]
    assert flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {("a", "b"): 1, ("a", "c"): {}, ("d",): [2]}


def test_another_budget_changes_the_plan(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    done = start(paired_names)
    assert done.experiment is not None
    before = done.experiment.read_text()
    found = again(done, monkeypatch, 120.0)
    assert found.plan.minutes == 120 and any(line.startswith("+  budget_minutes: 120") for line in found.difference())
    assert done.experiment.read_text() == before and not done.experiment.with_suffix(".yaml.bak").exists()
    backup = write(found)
    assert backup.read_text() == before and load_experiment(done.experiment).training.budget_minutes == 120
    assert plan_file(done.experiment).name == "plan.json"
    assert again(done, monkeypatch, None).difference() == []


def test_edits_and_own_keys_stay(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    done = start(paired_names)
    assert done.experiment is not None
    write(again(done, monkeypatch, 30.0))
    text = done.experiment.read_text()
    batch = read_yaml(done.experiment).tree["training"]["batch_size"]
    text = (
        text.replace(f"batch_size: {batch}", "batch_size: 5") + "# mine\nearly_stopping: {patience: 7}  # my choice\n"
    )
    done.experiment.write_text(text)
    found = again(done, monkeypatch, 60.0)
    assert list(found.kept) == ["training.batch_size"]
    write(found)
    exp = load_experiment(done.experiment)
    assert exp.training.batch_size == 5 and exp.training.budget_minutes == 60
    assert "# mine\nearly_stopping: {patience: 7}  # my choice\n" in done.experiment.read_text()
    assert again(done, monkeypatch, 60.0).kept  # the next plan still knows that the value is the user's


def test_an_edited_network_stays_whole(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    done = start(paired_names)
    assert done.experiment is not None
    write(again(done, monkeypatch, 30.0))
    text = done.experiment.read_text()
    done.experiment.write_text(text.replace("segmentation_models_pytorch.Unet ", "segmentation_models_pytorch.FPN "))
    args = read_yaml(done.experiment).tree["model"]["args"]
    write(again(done, monkeypatch, 3000.0))
    assert read_yaml(done.experiment).tree["model"] == {"target": "segmentation_models_pytorch.FPN", "args": args}


def test_keys_that_the_user_added_to_planned_sections_stay(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    done = start(paired_names)
    assert done.experiment is not None
    write(again(done, monkeypatch, 30.0))
    tree = read_yaml(done.experiment).tree
    assert "gate" not in tree and "crop" not in tree["prepare"] and "amsgrad" not in tree["optimizer"]["args"]
    tree["gate"] = {"weight": 0.3}
    tree["optimizer"]["args"]["eps"] = 1.0e-6
    tree["prepare"]["cache_gib"] = 1
    done.experiment.write_text(yaml.safe_dump(tree, sort_keys=False))
    write(again(done, monkeypatch, 60.0))
    new = read_yaml(done.experiment).tree
    assert new["gate"] == tree["gate"] and new["model"] == tree["model"]
    assert new["optimizer"] == tree["optimizer"] and new["prepare"]["cache_gib"] == 1
    assert new["training"]["budget_minutes"] == 60


def test_renamed_classes_need_no_edit_of_planned_steps(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    done = start(decathlon)
    assert done.experiment is not None
    number = {"along": "S", "classes": ["Anterior", "Posterior"]}
    planned = json.loads(plan_file(done.experiment).read_text())
    planned["values"]["postprocess"] = {"number": number, "tune": True}
    text = "".join(block for key, block in split_blocks(done.experiment.read_text()) if key != "postprocess")
    done.experiment.write_text(text + f"postprocess: {json.dumps(planned['values']['postprocess'])}\n")
    competition = done.experiment.with_name("competition.yaml")
    competition.write_text(competition.read_text().replace("Anterior", "front").replace("Posterior", "back"))
    with pytest.raises(MaskfoldError, match="Anterior"):  # without a plan.json, the section is the user's own
        plan_file(done.experiment).unlink()
        again(done, monkeypatch, 30.0)
    plan_file(done.experiment).write_text(json.dumps(planned))
    write(again(done, monkeypatch, 30.0))
    exp = load_experiment(done.experiment)
    assert exp.competition.classes == ["front", "back"] and exp.postprocess.number is None and exp.postprocess.tune


def test_slices_of_volumes_are_not_planned(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    done = start(decathlon)
    assert done.experiment is not None
    text = done.experiment.read_text()
    size = read_yaml(done.experiment).tree["patch"]["size"]
    done.experiment.write_text(text.replace(f"size: {size}", "size: [32, 32], slices: 3"))
    with pytest.raises(MaskfoldError, match="patch.slices"):
        again(done, monkeypatch, 30.0)


def test_folds_and_seed_stay(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    done = start(paired_names)
    assert done.experiment is not None
    text = done.experiment.read_text().replace("seed: 12345", "seed: 7").replace("k: 5", "k: 4")
    done.experiment.write_text(text)
    write(again(done, monkeypatch, 60.0))
    exp = load_experiment(done.experiment)
    assert (exp.seeds, exp.folds.k) == ([7], 4)


@pytest.mark.parametrize("own", [None, "{scheme: kfold, k: 3}", "{scheme: group, k: 3}"])
def test_the_reason_for_the_folds_knows_groups_that_were_set_later(
    own: str | None, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = start(paired_names)
    assert done.experiment is not None and "8 cases without groups" in done.experiment.read_text()
    write_text(
        Path("data/paired_names/patients.csv"), "id,who\n" + "".join(f"{i},{n // 2}\n" for n, i in enumerate(IDS))
    )
    competition = done.competition.read_text()
    done.competition.write_text(re.sub("group: null.*", "group: patients.csv:who", competition))
    text = done.experiment.read_text()
    if own is not None:
        done.experiment.write_text(text.replace("{scheme: kfold, k: 5}", own))
    grouped = dataclasses.replace(done, exploration=explore(load_competition(done.competition), lambda rows, _: rows))
    write(again(grouped, monkeypatch, 60.0))
    line = next(line for line in done.experiment.read_text().splitlines() if line.startswith("folds:"))
    above = done.experiment.read_text().partition("folds:")[0].rpartition("\nseed:")[2]
    assert load_experiment(done.experiment).folds.scheme == ("kfold" if own and "kfold" in own else "group")
    assert "8 cases in 4 groups" in above + line and "without groups" not in above + line
    assert ("your value; the plan would set group" in above + line) == (own == "{scheme: kfold, k: 3}")


def test_the_reason_for_the_folds_forgets_groups_that_were_removed_later(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = start(paired_names)
    assert done.experiment is not None
    write_text(
        Path("data/paired_names/patients.csv"), "id,who\n" + "".join(f"{i},{n // 2}\n" for n, i in enumerate(IDS))
    )
    text = done.competition.read_text()
    done.experiment.write_text(done.experiment.read_text().replace("k: 5", "k: 3"))
    for group, reason in (
        ("group: patients.csv:who", "8 cases in 4 groups"),
        ("group: null", "8 cases without groups"),
    ):
        done.competition.write_text(re.sub("group: null.*", group, text))
        found = explore(load_competition(done.competition), lambda rows, _: rows)
        write(again(dataclasses.replace(done, exploration=found), monkeypatch, 60.0))
        comments = done.experiment.read_text().partition("seed:")[2].partition("prepare:")[0]
        assert reason in comments and comments.count("8 cases") == 1


def test_a_comment_of_the_user_beside_the_folds_stays(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    done = start(paired_names)
    assert done.experiment is not None
    lines = [
        "folds: {scheme: kfold, k: 4}  # as agreed" if line.startswith("folds:") else line
        for line in done.experiment.read_text().splitlines()
    ]
    done.experiment.write_text("\n".join(lines) + "\n")
    write(again(done, monkeypatch, 60.0))
    assert "folds: {scheme: kfold, k: 4}  # as agreed" in done.experiment.read_text()


def test_a_file_beside_others_has_its_own_plan() -> None:
    assert plan_file(Path("a/unet.yaml")) == Path("a/unet.plan.json")
