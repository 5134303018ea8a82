"""The search space: keys, choices by label, ranges that contain the YAML's values; errors name the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from competition.errors import MaskfoldError
from competition.study.study import run_study
from tests.study.quick import YAML

RATE = "    optimizer.args.lr: {low: 1.0e-4, high: 1.0e-2, log: true}\n"
LINE = YAML[: YAML.index(RATE)].count("\n") + 1  # where RATE stands


def test_choices_are_stored_by_label_and_conditions_hold(quick):
    text = (
        YAML.replace(
            RATE,
            RATE
            + """\
    model.args.features:
      choices: {small: [4, 4, 8, 8, 8, 4], wide: [8, 8, 16, 16, 16, 8]}
    optimizer.target: {choices: [torch.optim.AdamW, torch.optim.SGD]}
    optimizer.args.weight_decay: {low: 0.0, high: 0.1, when: {optimizer.target: torch.optim.AdamW}}
    schedule: {choices: {poly: {name: poly, power: 0.8}, own: {name: onecycle}}}
""",
        )
        .replace("args: {lr: 1.0e-3}", "args: {lr: 1.0e-3, weight_decay: 0.01}")
        .replace("study:", "schedule: {name: onecycle}\nstudy:")
    )
    search = quick(text)
    run_study(search, 8, lambda line: None)
    assert [trial.state.name for trial in search.trials] == ["COMPLETE"] * 8
    # the YAML's own part is a choice, though the schema fills in what both leave out
    assert search.trials[0].params["schedule"] == "own"
    seen = set()
    for trial in search.trials:
        words = dict(word.split("=", 1) for word in trial.user_attrs["words"])
        assert trial.params["model.args.features"] in ("small", "wide")
        assert (
            json.loads(words["model.args.features"])[0] == {"small": 4, "wide": 8}[trial.params["model.args.features"]]
        )
        adam = trial.params["optimizer.target"].endswith("AdamW")
        assert ("optimizer.args.weight_decay" in trial.params) == adam
        seen.add(adam)
    assert seen == {True, False}


def test_a_part_that_says_something_else_is_not_the_yamls_own(quick):
    text = YAML.replace(RATE, "    schedule: {choices: {warm: {name: onecycle, warmup: 0.1}}}\n").replace(
        "study:", "schedule: {name: onecycle}\nstudy:"
    )
    with pytest.raises(MaskfoldError, match=r"schedule .*choices .*\(warm\)"):
        quick(text)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("    optimizer.args.lr: {low: 1.0e-2, high: 1.0e-4}", "requires `low` and `high`, with `low` below `high`"),
        ("    optimizer.args.lr: {low: 2.0e-3, high: 1.0e-2}", "found 0.001, expected a number from 0.002 to 0.01"),
        ("    optimizr.args.lr: {low: 1.0e-4, high: 1.0e-2}", "optimizr is not a known key (nearest: optimizer)"),
        (
            "    optimizer.args.lrr: {low: 1.0e-4, high: 1.0e-2}",
            "optimizer.args.lrr is not set in the YAML (nearest: optimizer.args.lr).",
        ),
        ("    patch.size: {choices: [[32, 32], [31]]}", "patch.size = [31] is not valid: patch.size: expected 2 or"),
        ("    patch.size: {choices: [[32, 32], [31, a]]}", "patch.size.1: expected an integer"),
        ("    model.args.dropout: {low: 0, high: 1, choices: [0.1]}", "either both `low` and `high`, or `choices`"),
        ("    model.args.nothing: {choices: [1, 2]}", "model.args.nothing is not set in the YAML."),
        ("    run.threads: {choices: [1, 2]}", "no effect on the trained network"),
        ("    model.args.dropout: {low: 0.0, high: 0.5, when: {patch.size: 3}}", "not a key of `space`"),
        (
            "    training.batch_size: {low: 3, high: 9, step: 2}",
            "training.batch_size in the YAML: found 4, expected 3 plus a multiple of 2",
        ),
        (
            "    training.batch_size: {low: 4, high: 9, step: 2}",
            "`high` 9 cannot be reached from 4 in steps of 2; the last value is 8",
        ),
        (
            "    model.args.dropout: {low: 0.0, high: 0.35, step: 0.1}",
            "`high` 0.35 cannot be reached from 0 in steps of 0.1; the last value is 0.3",
        ),
        ("    model.args.dropout: {low: 0, high: 1}", "model.args.dropout in the YAML: found 0.1, expected an integer"),
    ],
)
def test_a_space_that_does_not_fit_is_refused_before_the_first_trial(quick, place, line, words):
    with pytest.raises(MaskfoldError) as refusal:
        quick(YAML.replace(RATE, line + "\n").replace("study:", "training: {batch_size: 4}\nstudy:"))
    said = str(refusal.value)
    assert words in said and refusal.value.status == 2, said
    assert said.startswith(str(place / "unet2d.yaml")) and "command line" not in said
    if "`when`" not in said:  # of the section as a whole
        assert f"line {LINE + 1}: " in said, said
    assert not Path("mlruns/optuna.db").exists()


def test_a_space_on_the_command_line_is_blamed_there(quick):
    with pytest.raises(MaskfoldError) as refusal:
        quick(overrides=("study.space={optimizer.args.lr: {low: 0.5, high: 1.0}}",))
    assert str(refusal.value).startswith(
        "command line: study.space: optimizer.args.lr in the YAML: found 0.001, expected"
    )
    with pytest.raises(MaskfoldError) as refusal:
        quick(overrides=("study.space[optimizer.args.lr].low=0.005",))
    assert str(refusal.value).startswith(
        "command line: study.space: optimizer.args.lr in the YAML: found 0.001, expected"
    )


@pytest.mark.parametrize(
    ("given", "value"),
    [("{low: 2, high: 8, step: 2}", 4), ("{low: 1, high: 5}", 4), ("{low: 4, high: 32, log: true}", 4)],
)
def test_steps_and_whole_numbers_that_fit(quick, given, value):
    search = quick(
        YAML.replace(
            RATE, f"    training.batch_size: {given}\n    model.args.dropout: {{low: 0.0, high: 0.3, step: 0.1}}\n"
        ).replace("study:", f"training: {{batch_size: {value}}}\nstudy:")
    )
    run_study(search, 6, lambda line: None)
    assert search.trials[0].params == {"training.batch_size": value, "model.args.dropout": 0.1}
    for trial in search.trials:
        assert isinstance(trial.params["training.batch_size"], int)
        assert round(trial.params["model.args.dropout"] * 10, 6) in (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  objectives: [scroe]\n", "study.objectives: found scroe, expected one of score, "),
        ("  constraints: {peak_gb: 1.0}\n", "study.constraints: found peak_gb, expected one of score, "),
    ],
)
def test_an_objective_that_nothing_measures(quick, text, words):
    with pytest.raises(MaskfoldError) as refusal:
        quick(YAML.replace("  space:", f"{text}  space:"))
    assert words in str(refusal.value) and f"unet2d.yaml, line {LINE - 1}: " in str(refusal.value)


def test_a_fit_on_all_cases_judges_nothing(quick):
    with pytest.raises(MaskfoldError, match=r"folds\.run: found full"):
        quick(overrides=("folds.run=full",))
