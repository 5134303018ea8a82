"""All errors of a YAML file are reported together: location, key, expected and found value, nearest key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from competition.config.competition import MetricConfig
from competition.config.loading import load_experiment
from competition.errors import MaskfoldError
from tests.config.conftest import LAST

Refusal = Callable[..., str]
HERE = f"unet.yaml, line {LAST + 1}: "


@pytest.mark.parametrize(
    ("more", "words", "expected"),
    [
        ("folds: {file: folds.csv}\n", [], "line 8: folds.file has no effect, because it applies only to"),
        ("folds: {shares: [0.8, 0.2], k: 3}\n", [], "folds.scheme: holdout, but folds.scheme is kfold."),
        ("prepare: {window: [40, 400]}\n", [], "prepare.intensity: window, but prepare.intensity is zscore."),
        (
            "prepare: {percentiles: [1, 99]}\n",
            [],
            "Set prepare.intensity to percentile, or remove prepare.percentiles.",
        ),
        ("schedule: {patience: 3}\n", [], "schedule.patience has no effect"),
        ("", ["folds.file=folds.csv"], "command line: folds.file has no effect"),
        ("folds: {scheme: group}\n", ["folds.file=folds.csv"], "folds.scheme: file, but folds.scheme is group."),
        ("", ["prepare.window=[40,400]"], "command line: prepare.window has no effect"),
    ],
)
def test_a_key_that_applies_to_another_value_only(more: str, words: list[str], expected: str, refusal: Refusal) -> None:
    assert expected.replace("line 8", f"line {LAST + 1}") in refusal(more, *words)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("epocs: 3", "epocs is not a known key"),
        ("epochs: 3", "epochs is not a known key; did you mean training.epochs."),
        ("trainig: {}", "trainig is not a known key (nearest: training)."),
        ("folds: {K: 3}", "folds.K is not a known key (nearest: k)."),
        ("folds: {1: 3}", "folds.1 is not a known key; known keys: scheme, k,"),
        ("folds: {k: 1}", "folds.k: expected at least 2, found 1."),
        ("folds: {k: 2.0}", "folds.k: expected an integer, found 2.0."),
        ("folds: {k: true}", "folds.k: expected an integer, found true."),
        ("folds: {k: '5'}", "folds.k: expected an integer, found the text '5'."),
        ("folds: {k:}", "folds.k: expected an integer, found nothing (null)."),
        (
            "folds: {scheme: kfld}",
            "folds.scheme: expected kfold, stratified, group, stratified_group, holdout or file, "
            "found the text 'kfld' (nearest: kfold).",
        ),
        ("folds: [1]", "folds: expected a mapping, found the list [1]."),
        ("folds:", "folds: expected a mapping, found nothing (null)."),
        ("training: {ema: 1.5}", "training.ema: expected less than 1, found 1.5."),
        ("training: {ema: .nan}", "training.ema: expected"),
        ("training: {clip_gradient: .inf}", "training.clip_gradient: expected a finite number, found inf."),
        ("prepare: {spacing: [1, a]}", "prepare.spacing.1: expected a number, found the text 'a'."),
        (
            "prepare: {orientation: RAX}",
            "prepare.orientation: expected text of the form ^[RLAPSI]{3}$, found the text 'RAX'.",
        ),
        # unions: one line, about the branch that was meant
        ("seed: a", "seed: expected an integer or a list of integers, found the text 'a'."),
        ("seed: []", "seed: expected 1 or more entries, found the list []."),
        ("seed: [1, a]", "seed.1: expected an integer, found the text 'a'."),
        ("folds: {run: ful}", "folds.run: expected a list of integers or full, found the text 'ful'."),
        ("folds: {run: []}", "folds.run: expected 1 or more entries, found the list []."),
        (
            "extra: {competition: competition.yaml, classes: {cell: null}}",
            "`extra.classes` maps every class to null, expected at least one class of this competition.",
        ),
        ("folds: {run: [-1]}", "folds.run.0: expected at least 0, found -1."),
        ("folds: {run: [a]}", "folds.run.0: expected an integer, found the text 'a'."),
        (
            "inference: {tta: flip}",
            "inference.tta: expected a list of values from (flip, rotate90) or auto, found the text 'flip'.",
        ),
        (
            "inference: {tta: [flop]}",
            "inference.tta.0: expected flip or rotate90, found the text 'flop' (nearest: flip).",
        ),
        ("augment: {flip: yes}", "augment.flip: expected true or false or a list of integers, found the text 'yes'."),
        ("augment: {flip: [3]}", "augment.flip.0: expected at most 2, found 3."),
        (
            "augment: {transforms: [{tagret: a.b, target: torch.nn.ReLU}]}",
            "augment.transforms.0.tagret is not a known key (nearest: target).",
        ),
        # what sections say about their keys together
        (
            "folds: {shares: [0.5, 0.6]}",
            "folds.shares: `shares` must be two or three numbers with sum 1, found [0.5, 0.6].",
        ),
        ("folds: {scheme: file}", "folds.scheme: `scheme: file` requires `file`, a CSV with the columns id and fold."),
        ("prepare: {spacing: [1]}", "`prepare.spacing` must have 2 numbers"),
        (
            "training: {plan: [[3, 1]]}",
            "training.plan: `plan` must be a list of pairs [step, total steps] with 0 ≤ step < total steps.",
        ),
    ],
)
def test_one_problem_is_one_line(more: str, expected: str, refusal: Refusal) -> None:
    said = refusal(more + "\n")
    assert "\n" not in said
    assert said.startswith(HERE)
    assert expected in said
    assert said.endswith("repeat the command.")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("loss=3", "loss: expected a mapping or a list of mappings, found 3."),
        ("loss=[]", "loss: expected 1 or more entries, found the list []."),
        ("loss={target: torch.nn.L1Loss, weight: 0}", "loss.weight: expected more than 0, found 0."),
        ("loss=[{target: torch.nn.L1Loss, weight: a}]", "loss.0.weight: expected a number, found the text 'a'."),
        ("loss=[3]", "loss.0: expected a mapping, found 3."),
        (
            "patch.size=[1,2,3]",
            "`patch.size` must have 2 numbers, because competition.dimensions is 2, found [1, 2, 3].",
        ),
        ("patch.size=[1]", "patch.size: expected 2 or more entries, found the list [1]."),
        ("competition.train.images=3", "competition.train.images: expected text or a mapping, found 3."),
        ("competition.train.images={t1: 3}", "competition.train.images.t1: expected text, found 3."),
        ("competition.classes=[]", "competition.classes: expected 1 or more entries, found the list []."),
        ("competition.classes=[no, 1]", "competition.classes.1: expected text, found 1."),
        ("competition.root=3", "competition.root: expected a path, found 3."),
        ("competition.dimensions=4", "competition.dimensions: expected 2 or 3, found 4."),
        (
            "competition.submission.columns.clas=a",
            "competition.submission.columns.clas is not a known key (nearest: class).",
        ),
    ],
)
def test_unions_and_the_competition_on_the_command_line(word: str, expected: str, refusal: Refusal) -> None:
    said = refusal("", word)
    assert "\n" not in said
    assert said.startswith("command line: ") and expected in said


def test_a_missing_key_is_placed_at_its_section(refusal: Refusal, tmp_path: object) -> None:
    said = refusal("seed: 1\naugment:\n  transforms:\n    - args: {}\n")
    assert said.startswith(f"unet.yaml, line {LAST + 4}: augment.transforms.0.target is missing, expected text.")


def test_problems_of_both_files_and_of_the_words_come_together(refusal: Refusal) -> None:
    said = refusal("folds:\n  kk: 3\n  k: 1\n", "competition.train.imagse=a", "seed=x")
    assert said.splitlines() == [
        "unet.yaml: 4 invalid keys.",
        "  command line: competition.train.imagse is not a known key (nearest: images).",
        "  command line: seed: expected an integer or a list of integers, found the text 'x'.",
        f"  unet.yaml, line {LAST + 3}: folds.k: expected at least 2, found 1.",
        f"  unet.yaml, line {LAST + 2}: folds.kk is not a known key (nearest: k).",
        " Correct these keys, then repeat the command.",
    ]


def test_the_competition_has_lines_of_its_own(refusal: Refusal, toy: Callable[..., object]) -> None:
    from pathlib import Path

    file = Path("competition.yaml")
    file.write_text(file.read_text().replace("  masks:", "  msaks:").replace("dimensions: 2\n", ""))
    said = refusal()
    assert "competition.yaml, line 6: competition.train.msaks is not a known key (nearest: masks)." in said
    assert "competition.yaml, line 1: competition.dimensions is missing, expected 2 or 3." in said


def test_sections_that_are_not_there(refusal: Refusal) -> None:
    from pathlib import Path

    from competition.config.loading import load_experiment
    from competition.errors import MaskfoldError

    Path("bare.yaml").write_text("seed: 1\n")
    with pytest.raises(MaskfoldError) as caught:
        load_experiment("bare.yaml")
    said = str(caught.value)
    assert "bare.yaml, line 1: competition is missing, expected the path of a competition's YAML." in said
    assert "bare.yaml, line 1: loss is missing, expected a mapping or a list of mappings." in said


def test_long_values_are_shortened(refusal: Refusal) -> None:
    assert len(refusal("seed: " + "x" * 5000)) < 300


def test_terms_of_one_metric_with_opposite_weights(refusal: Refusal) -> None:
    terms = "[{name: nsd, weight: 1.0}, {name: nsd, weight: -1.0}]"
    message = refusal("", f"competition.metric={{sum: {terms}}}")
    assert "a higher sum means a better nsd, but a worse nsd; give a negative weight" in message


def test_a_metric_s_name_that_is_only_a_label(toy: Callable[[str], Path], refusal: Refusal, tmp_path: Path) -> None:
    toy("")
    section = "metric: {sum: [{name: dice, weight: 0.5}, {name: iou, weight: 0.5}]}\n"
    with open(tmp_path / "competition.yaml", "a") as file:
        file.write(section)
    expected = "competition.metric.name: iou would be only a label, because competition.metric.sum (competition.yaml"
    assert expected in refusal("", "competition.metric.name=iou")
    Path("unet.yaml").rename("base.yaml")
    Path("own.yaml").write_text("base: base.yaml\ncompetition: {metric: {name: iou}}\n")
    with pytest.raises(MaskfoldError, match="own.yaml, line 2: competition.metric.name: iou would be only a label"):
        load_experiment("own.yaml")
    Path("own.yaml").write_text("base: base.yaml\ncompetition: {metric: {name: iou, sum: null}}\n")
    assert load_experiment("own.yaml").competition.metric == MetricConfig(name="iou")
    exp = load_experiment("base.yaml", ["competition.metric.name=mine"])
    assert exp.competition.metric.name == "mine"
