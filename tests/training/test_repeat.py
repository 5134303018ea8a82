"""A network whose bf16 gradients are another each time is found, and trains in fp32."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from competition.config.experiment import TargetConfig
from competition.training import guards
from competition.training.cross_validate import make_jobs, open_run, prepare_run
from competition.training.distributed import make_fabric
from competition.training.fold import run_fold
from competition.training.guards import bf16_is_deterministic


class Steady(torch.nn.Module):
    """One convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image)


class Shaky(Steady):
    """Its third gradient is a tenth larger than the others."""

    computed = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        Shaky.computed += 1
        return self.layer(image) * (1.1 if Shaky.computed % 5 == 3 else 1.0)


class Broken(Steady):
    """Its gradients are NaN, each time the same."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(self.layer(image) * 0.0)


@pytest.mark.parametrize(("network", "same"), [(Steady, True), (Shaky, False), (Broken, False)])
def test_gradients_are_compared_once(tiny, tmp_path, monkeypatch, network, same):
    exp = tiny(2).model_copy(update={"model": TargetConfig(target=f"mine.{network.__name__}")})
    made = []
    monkeypatch.setattr(
        "competition.models.build.build_network", lambda *args, **more: made.append(1) or network(args[1], 3)
    )
    state = torch.get_rng_state()
    assert bf16_is_deterministic(exp, 1, tmp_path) is same
    assert torch.equal(torch.get_rng_state(), state)  # the fold's own draws are what they were
    assert bf16_is_deterministic(exp, 1, tmp_path) is same and len(made) == 1  # the other folds read it
    assert bf16_is_deterministic(exp, 2, tmp_path) is same and len(made) == 2  # another network is another question


def test_auto_is_fp32_where_bf16_is_not_steady(tiny, monkeypatch):
    monkeypatch.setattr("competition.training.distributed.native_precision", lambda accelerator: "bf16")
    exp = tiny(2, "run.accelerator=cpu", "training.precision=auto")
    assert make_fabric(exp, lambda: True)[1] == "bf16"
    assert make_fabric(exp, lambda: False)[1] == "fp32"
    asked = tiny(2, "run.accelerator=cpu", "training.precision=bf16")
    assert make_fabric(asked, lambda: pytest.fail("what the YAML asks for is not questioned"))[1] == "bf16"


def test_a_fold_says_so(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("competition.training.distributed.native_precision", lambda accelerator: "bf16")
    monkeypatch.setattr(guards, "_gradients_repeat", lambda *_: False)
    run = open_run(
        tiny(2, "training.epochs=1", "training.precision=auto", "run.accelerator=cpu", "run.threads=1"), "demo2d-tiny"
    )
    prepare_run(run)
    job = make_jobs(run)[0]
    job.folder.mkdir(parents=True, exist_ok=True)
    said: list[str] = []
    result = run_fold(job, said.append)
    assert result.precision == "32-true" and any("bf16 gradients of this network" in line for line in said)
    answers = list((job.cache / "bf16").glob("*.json"))
    assert len(answers) == 1 and json.loads(answers[0].read_text()) == {"repeats": False}


@pytest.mark.parametrize(("system", "unit"), [("linux", 2**10), ("darwin", 1)])
def test_the_peak_memory_is_in_gib_on_every_system(monkeypatch, system, unit):
    import resource

    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=3 * 2**30 // unit))
    monkeypatch.setattr("sys.platform", system)
    assert guards.peak_gib(torch.device("cpu")) == 3
