"""Import paths: trusted packages, base classes and arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from competition.config.instantiate import (
    TRUSTED_PACKAGES,
    check_arguments,
    check_targets,
    resolve_target,
    trusted_packages,
)
from competition.config.loading import load_experiment
from competition.errors import MaskfoldError


@pytest.fixture(autouse=True)
def _no_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASKFOLD_TRUST", raising=False)


@pytest.mark.parametrize(
    ("path", "kind", "found"),
    [
        ("torch.nn.Conv2d", nn.Module, nn.Conv2d),
        ("torch.optim.AdamW", torch.optim.Optimizer, torch.optim.AdamW),
        ("monai.networks.nets.DynUNet", nn.Module, monai.networks.nets.DynUNet),
        (
            "monai.networks.nets.unet.UNet",
            nn.Module,
            monai.networks.nets.UNet,
        ),  # through a module that has a class's name
        ("segmentation_models_pytorch.Unet", nn.Module, smp.Unet),
        ("segmentation_models_pytorch.losses.DiceLoss", nn.Module, smp.losses.DiceLoss),
        ("torch.optim.SGD", (nn.Module, torch.optim.Optimizer), torch.optim.SGD),
        ("torch.nn.functional.relu", None, nn.functional.relu),
        ("competition.errors.MaskfoldError", Exception, MaskfoldError),
    ],
)
def test_found(path: str, kind: Any, found: Any) -> None:
    assert resolve_target(path, kind, "model.target") is found


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("os.system", ["trusted", "trusted package"]),
        ("builtins.eval", ["trusted"]),
        ("torch.os.system", ["leads out of the package torch into the module os"]),
        ("torch.sys.exit", ["module sys"]),
        ("torch.nn.modules.linear.math.sqrt", ["module math"]),
        ("torch.nn.modules.module.OrderedDict", ["comes from collections"]),
        ("torch._C.Graph", ["private"]),
        ("torch.nn.Module.__init__", ["private"]),
        ("torch.__builtins__.eval", ["private"]),
        ("torch.nn", ["is a module"]),
        ("torch", ["import path"]),
        ("", ["import path"]),
        ("torch..nn", ["import path"]),
        ("torch.nn.ReLU()", ["import path"]),
        ("torch.nn:ReLU", ["import path"]),
        ("torch.nn.functional.relu", ["is a function"]),
        ("torch.float32", ["is a dtype", "trusted"]),
        ("torch.optim.AdamW", ["AdamW", "torch Module"]),
        ("monai.networks.nets.unet", ["is a module", "UNet"]),
        ("segmentation_models_pytorch.UNET", ["has no UNET", "Unet"]),
        ("monai.netwroks.nets.UNet", ["has no netwroks", "networks"]),
        ("monai.networks.nets.DynUnetz", ["DynUNet"]),
        ("torch.nn.Linear.foo", ["Linear has no foo"]),
        ("smp.Unet", ["Did you mean segmentation_models_pytorch.Unet?"]),
        ("monia.losses.DiceLoss", ["monai.losses.DiceLoss?"]),
        ("my_nets.Fancy", ["--trust my_nets", "MASKFOLD_TRUST=my_nets"]),
    ],
)
def test_refused(path: str, words: list[str]) -> None:
    with pytest.raises(MaskfoldError) as caught:
        resolve_target(path, nn.Module, "model.target")
    assert caught.value.status == 2
    assert caught.value.message.startswith("model.target: ")
    assert any(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("path", ["torch.os.system", "torch.pi", "torch.float32", "torch.nn.modules.linear.Any"])
def test_refused_for_any_kind(path: str) -> None:
    with pytest.raises(MaskfoldError):
        resolve_target(path, None, "a.target")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """`own(source)`: a module in the working folder, as a user would write one; gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    name = f"own_{abs(hash(tmp_path)):x}"

    def make(source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        return name

    yield make
    sys.modules.pop(name, None)


EFFECT = (
    "from pathlib import Path\nimport os, torch\nPath('imported').touch()\n"
    "class Net(torch.nn.Conv2d): pass\nsystem = os.system\n"
)


def test_an_untrusted_module_is_not_even_imported(own: Callable[[str], str]) -> None:
    name = own(EFFECT)
    for path in (f"{name}.Net", f"torch.{name}.Net", f"{name}.sub.Net"):
        with pytest.raises(MaskfoldError):
            resolve_target(path, nn.Module, "model.target")
    assert not Path("imported").exists() and name not in sys.modules


def test_a_module_of_ones_own_by_argument(own: Callable[[str], str]) -> None:
    name = own(EFFECT)
    found = resolve_target(f"{name}.Net", nn.Module, "model.target", [name])
    assert issubclass(found, nn.Conv2d) and Path("imported").exists()
    with pytest.raises(MaskfoldError, match="comes from"):  # trusted is the package, not what it happens to import
        resolve_target(f"{name}.system", None, "model.target", [name])
    with pytest.raises(MaskfoldError, match="into the module os"):
        resolve_target(f"{name}.os.system", None, "model.target", [name])
    assert resolve_target(f"{name}.torch.nn.ReLU", nn.Module, "model.target", [name]) is nn.ReLU


def test_a_module_of_ones_own_by_environment(own: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    name = own(EFFECT)
    monkeypatch.setenv("MASKFOLD_TRUST", f"other_nets, {name}")
    assert resolve_target(f"{name}.Net", nn.Module, "model.target").__name__ == "Net"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import nothing_like_it", ["needs the package nothing_like_it", "not installed"]),
        ("def broken(:", ["cannot be imported", "SyntaxError"]),
        ("raise RuntimeError('oh')", ["cannot be imported", "RuntimeError: oh"]),
        ("x = 1", ["has no Net"]),
    ],
)
def test_a_module_of_ones_own_that_does_not_work(own: Callable[[str], str], source: str, words: list[str]) -> None:
    name = own(source)
    with pytest.raises(MaskfoldError) as caught:
        resolve_target(f"{name}.Net", nn.Module, "model.target", [name])
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_trusted_package_that_is_not_there() -> None:
    with pytest.raises(MaskfoldError, match="needs the package nowhere_nets, which is not installed"):
        resolve_target("nowhere_nets.Net", nn.Module, "model.target", ["nowhere_nets"])


def test_trusted_names() -> None:
    assert trusted_packages() == set(TRUSTED_PACKAGES)
    assert trusted_packages(["a,b", "c"]) == {*TRUSTED_PACKAGES, "a", "b", "c"}
    assert trusted_packages("abc") == {*TRUSTED_PACKAGES, "abc"}
    with pytest.raises(MaskfoldError, match=r"my_nets\.unet"):
        trusted_packages(["my_nets.unet"])


class Takes:
    def __init__(self, channels: int, dropout: float = 0.0, *, norm: str = "batch") -> None:
        pass


class TakesAll:
    def __new__(cls, *_args: Any, **_kwargs: Any) -> TakesAll:
        return super().__new__(cls)

    def __init__(self, encoder_name: str = "resnet34", depth: int = 5, **kwargs: Any) -> None:
        pass


class TakesNothing:
    pass


@pytest.mark.parametrize(
    ("cls", "args"),
    [
        (Takes, {"channels": 1}),
        (Takes, {"channels": 1, "norm": "none"}),
        (TakesAll, {"encoder_name": "a", "aux_params": {}}),
        (TakesAll, {}),
        (TakesNothing, {}),
        (smp.Unet, {"encoder_name": "resnet18"}),
        (nn.CrossEntropyLoss, {"label_smoothing": 0.1}),
    ],
)
def test_arguments_that_fit(cls: type, args: dict[str, Any]) -> None:
    check_arguments(cls, args, "model.args")


@pytest.mark.parametrize(
    ("cls", "args", "words"),
    [
        (
            Takes,
            {"channels": 1, "dropuot": 0.1},
            "model.args.dropuot: Takes has no argument of this name. Did you mean dropout?",
        ),
        (
            Takes,
            {"channels": 1, "zzz": 0.1},
            "model.args.zzz: Takes has no argument of this name. "
            "The arguments of Takes are channels, dropout and norm.",
        ),
        (Takes, {"self": 1}, "model.args.self: Takes has no argument of this name."),
        (Takes, {"dropout": 0.1}, "model.args lacks channels, which Takes requires. Add model.args.channels."),
        (
            TakesAll,
            {"encoder_nmae": "a"},
            "model.args.encoder_nmae: TakesAll has no argument of this name. Did you mean encoder_name?",
        ),
        (smp.Unet, {"encoder_nmae": "a"}, "Did you mean encoder_name?"),
        (TakesNothing, {"a": 1}, "model.args.a: TakesNothing has no argument of this name."),
        (monai.losses.DiceCELoss, {"sofmax": True}, "Did you mean softmax?"),
    ],
)
def test_arguments_that_do_not_fit(cls: type, args: dict[str, Any], words: str) -> None:
    with pytest.raises(MaskfoldError) as caught:
        check_arguments(cls, args, "model.args")
    assert caught.value.status == 2 and words in str(caught.value)


def test_missing_arguments_may_follow() -> None:
    check_arguments(torch.optim.AdamW, {"lr": 1e-3}, "optimizer.args", partial=True)
    with pytest.raises(MaskfoldError, match="Did you mean lr"):
        check_arguments(torch.optim.AdamW, {"lrr": 1e-3}, "optimizer.args", partial=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], None),
        (["model.args={kernel_sise: 3}"], "model.args.kernel_sise"),
        (["model.target=torch.optim.AdamW"], "model.target"),
        (["loss.args.reductoin=mean"], "loss.args.reductoin"),
        (["loss=[{target: torch.nn.Lines}]"], "loss.0.target"),
        (["optimizer.target=torch.nn.ReLU"], "optimizer.target"),
        (["optimizer.args.weight_decy=1"], "optimizer.args.weight_decy"),
        (["augment.transforms=[{target: albumentations.Affine, args: {scal: 1}}]"], "augment.transforms.0.args.scal"),
    ],
)
def test_every_target_of_an_experiment(words: list[str], said: str | None, toy: Callable[..., Path]) -> None:
    exp = load_experiment(toy(), words)
    if said is None:
        check_targets(exp)
        return
    with pytest.raises(MaskfoldError) as caught:
        check_targets(exp)
    assert caught.value.message.startswith(said)
