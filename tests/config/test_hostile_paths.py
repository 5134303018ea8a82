"""Paths, chains and nesting in a YAML that once ended with a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from competition.config.loading import load_competition, load_experiment
from competition.config.yaml import MAX_DEPTH
from competition.errors import MaskfoldError
from competition.models.pretrained import find_weights_file

Toy = Callable[..., Path]
PATH_KEYS = ("base", "competition", "competition.root", "folds.file", "init_from", "competition.train.exclude")


@pytest.mark.parametrize("key", ["base", "competition", "competition.root"])
def test_the_home_folder_of_an_unknown_user_is_an_error(toy: Toy, key: str) -> None:
    with pytest.raises(MaskfoldError, match="this machine has no such user") as caught:
        load_experiment(toy(), [f"{key}=~nobody_of_this_name/x.yaml"])
    assert caught.value.status == 2 and key in caught.value.message


def test_the_home_folder_of_an_unknown_user_is_no_weight_file() -> None:
    with pytest.raises(MaskfoldError, match="does not exist"):
        find_weights_file("~nobody_of_this_name/x.safetensors")


@pytest.mark.parametrize("key", PATH_KEYS)
def test_a_path_that_is_too_long_names_its_key(toy: Toy, key: str) -> None:
    with pytest.raises(MaskfoldError, match="cannot be read: File name too long") as caught:
        load_experiment(toy(), [f"{key}={'a' * 300}"])
    assert caught.value.status == 2 and f"{key}: " in caught.value.message and len(caught.value.message) < 400


def test_a_folder_that_cannot_be_searched_is_not_a_write_error(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    exists = Path.exists

    def refuse(path: Path) -> bool:
        if path.name == "hidden":
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(MaskfoldError, match="competition.root: hidden cannot be read: Permission denied"):
        load_experiment(toy(), ["competition.root=hidden"])
    with pytest.raises(MaskfoldError, match="root: hidden cannot be read"):
        load_competition("competition.yaml", ["root=hidden"])


@pytest.mark.parametrize("text", ["{a: " * 100 + "1" + "}" * 100, "[" * 100 + "1" + "]" * 100])
def test_nested_values_are_refused_in_files_and_on_the_command_line(toy: Toy, text: str) -> None:
    for load in (lambda: load_experiment(toy(), [f"model.args={text}"]), lambda: load_experiment(toy(f"x: {text}\n"))):
        with pytest.raises(MaskfoldError, match="nested too deeply") as caught:
            load()
        assert caught.value.status == 2


def test_a_nested_key_is_refused(toy: Toy) -> None:
    with pytest.raises(MaskfoldError, match="nested too deeply"):
        load_experiment(toy(), [f"model.args.{'.'.join('a' * 300)}=1"])
    depth = MAX_DEPTH - 6
    exp = load_experiment(toy(), [f"model.args.x={'[' * depth}1{']' * depth}"])
    assert exp.model.args["x"] != 1


def test_a_long_chain_of_bases_is_refused(toy: Toy) -> None:
    toy()
    for number in range(30):
        Path(f"chain{number}.yaml").write_text("base: " + (f"chain{number + 1}.yaml" if number < 29 else "unet.yaml"))
    assert load_experiment("chain15.yaml").competition.name == "toy"
    with pytest.raises(MaskfoldError, match="chain of more than 20 ") as caught:
        load_experiment("chain0.yaml")
    assert caught.value.status == 2
