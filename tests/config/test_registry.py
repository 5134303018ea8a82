"""Registries: entries by name, imported on the first lookup, with the nearest name in errors."""

from __future__ import annotations

import subprocess
import sys

import pytest

from competition.config.experiment import EXECUTORS, SCHEDULES
from competition.config.postprocess import STEPS
from competition.config.registry import Registry
from tests.config.conftest import LAST


def test_names_keep_their_order_or_are_alphabetical() -> None:
    assert SCHEDULES.names() == ["plateau", "cosine", "poly", "onecycle", "constant"]
    assert STEPS.names()[:3] == ["threshold", "triplet", "gate"] and STEPS.names()[-1] == "keep_largest"
    things: Registry[int] = Registry("thing", "competition.text")
    things.add("b", 2)
    assert things.register("a")(1) == 1 and things.names() == ["a", "b"] and things.get("b") == 2


def test_an_unknown_name_is_an_error_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"expected local or ray, found the text 'rey' \(nearest: ray\)"):
        EXECUTORS.get("rey")
    with pytest.raises(ValueError, match="cosine"), SCHEDULES.temporary("cosine", lambda share_done, cfg: 1.0):
        pass


def test_a_temporary_entry_comes_last_and_goes() -> None:
    with SCHEDULES.temporary("linear", lambda share_done, cfg: 1 - share_done):
        assert SCHEDULES.names()[-1] == "linear"
    assert "linear" not in SCHEDULES.names()


def test_names_of_executors_are_known_without_their_modules() -> None:
    script = (
        "import sys; from competition.config.experiment import EXECUTORS; EXECUTORS.check('ray'); "
        "print('competition.training.ray_executor' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            "postprocess: {steps: [{treshold: 0.4}]}",
            "postprocess.steps.0.treshold is not a known key (nearest: threshold)",
        ),
        ("postprocess: {steps: {cell: [{open: 0}]}}", "postprocess.steps.cell.0.open: expected more than 0, found 0"),
        (
            "postprocess: {steps: [{threshold: a}]}",
            "postprocess.steps.0.threshold: expected a number, found the text 'a'",
        ),
        ("postprocess: {steps: [3]}", "postprocess.steps.0: expected a mapping, found 3"),
        ("postprocess: {steps: [{open: 1, close: 1}]}", "postprocess.steps.0: a step must have exactly one key"),
        ("postprocess: {steps: [{fill_holes: false}]}", "postprocess.steps.0: a step must have exactly one key"),
        (
            "postprocess: {steps: [{triplet: {high: 1.0, pixels: 0, low: 0.2}}]}",
            "postprocess.steps.0.triplet.pixels: expected more than 0, found 0",
        ),
        ("postprocess: {steps: [{split: {}}]}", "`split` requires exactly one of `distance` and `boundary`"),
        ("postprocess: {steps: [{split: {distance: 1.0}}]}", "the step `split` requires competition.instances: true"),
        (
            "postprocess: {steps: [{gate: 0.4}]}",
            "the step `gate` requires a presence head; to train one, add the section `gate` to the experiment",
        ),
        (
            "postprocess: {steps: [{open: 1}, {threshold: 0.4}]}",
            "each of the steps `threshold` and `triplet` makes the mask",
        ),
        (
            "schedule: {name: cosin}",
            "schedule.name: expected plateau, cosine, poly, onecycle or constant, found the text 'cosin' "
            "(nearest: cosine)",
        ),
        ("run: {executor: rey}", "run.executor: expected local or ray, found the text 'rey' (nearest: ray)"),
    ],
)
def test_a_wrong_name_or_value_has_file_line_and_key(more: str, expected: str, refusal) -> None:
    said = refusal(more + "\n")
    assert said.startswith(f"unet.yaml, line {LAST + 1}: ") and expected in said and "\n" not in said
