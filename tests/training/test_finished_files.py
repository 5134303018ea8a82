"""A finished fold keeps its weights and no tensors of training, also after a kill at that moment or a lost result."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from competition.context import Context
from competition.errors import MaskfoldError
from competition.runs.checkpoint import load_checkpoint, save_checkpoint
from competition.runs.fold import FoldResult
from competition.training.averaging import CheckpointAverager, UniformSoup
from competition.training.fold import run_fold, setup_fold
from tests.training.test_fold import Killed, start


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def quiet(_line: str) -> None:
    pass


def tensors(value: object) -> int:
    if isinstance(value, torch.Tensor):
        return 1
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(tensors, parts))


SETTINGS = ("training.epochs=2", "training.average=2", "training.ema=0.9", "training.on_nan=restore")


def test_a_finished_fold_keeps_its_weights_only_and_a_lost_result_is_made_again_from_them(tiny, tmp_path):
    _, job = start(tiny(2, *SETTINGS), tmp_path, tmp_path / "cache")
    first = run_fold(job, quiet)
    assert tensors(load_checkpoint(job.folder / "last.pt")) == 0
    assert [path.name for path in job.folder.rglob("*.safetensors")] == ["weights.safetensors"]
    assert [path.name for path in job.folder.rglob("*.pt")] == ["last.pt"]
    assert (job.folder / "last.pt").stat().st_size < 20_000
    weights, scores = ((job.folder / name).read_bytes() for name in ("weights.safetensors", "scores.csv"))

    (job.folder / "result.json").unlink()
    again = run_fold(job, quiet)
    assert (again.score, again.dice, again.steps) == (first.score, first.dice, first.steps)
    assert again.digests == first.digests
    assert (job.folder / "weights.safetensors").read_bytes() == weights
    assert (job.folder / "scores.csv").read_bytes() == scores
    # A checkpoint with the network as it was initialised would be worse than none.
    assert tensors(load_checkpoint(job.folder / "last.pt")) == 0 and not (job.folder / "good.pt").exists()

    (job.folder / "result.json").unlink()
    state = load_checkpoint(job.folder / "last.pt")
    unfinished = {**state, "progress": {**state["progress"], "stopped": ""}}
    save_checkpoint(job.folder / "last.pt", unfinished)
    with pytest.raises(MaskfoldError, match="the training of this fold has not ended"):
        run_fold(job, quiet)
    save_checkpoint(job.folder / "last.pt", state)
    (job.folder / "weights.safetensors").unlink()
    with pytest.raises(MaskfoldError, match=r"no network.*weights\.safetensors is missing") as refusal:
        run_fold(job, quiet)
    assert f"delete {job.folder}" in str(refusal.value.hint)


@pytest.mark.parametrize("moment", ["after the checkpoint", "before the result"])
def test_a_fold_that_is_killed_while_it_drops_its_tensors_gets_its_result_later(tiny, tmp_path, monkeypatch, moment):
    _, job = start(tiny(2, *SETTINGS), tmp_path, tmp_path / "cache")

    def die(*_arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "after the checkpoint":
            patch.setattr(CheckpointAverager, "remove_files", die)
        else:
            patch.setattr(FoldResult, "write", die)
        with pytest.raises(Killed):
            run_fold(job, quiet)
    assert FoldResult.read(job.folder) is None
    weights, scores = ((job.folder / name).read_bytes() for name in ("weights.safetensors", "scores.csv"))
    assert run_fold(job, quiet).score is not None
    assert (job.folder / "weights.safetensors").read_bytes() == weights
    assert (job.folder / "scores.csv").read_bytes() == scores
    assert tensors(load_checkpoint(job.folder / "last.pt")) == 0 and not (job.folder / "snapshots").exists()


def test_the_tensors_are_not_dropped_before_the_weights_are_there(tiny, tmp_path):
    run, job = start(tiny(2), tmp_path, tmp_path / "cache")
    trainer = setup_fold(job, run, Context(), 0.0)
    trainer.save_checkpoint()
    with pytest.raises(ValueError, match="has no weights"):
        trainer.drop_tensors()
    assert tensors(load_checkpoint(job.folder / "last.pt")) > 0


def test_a_soup_whose_checkpoints_are_gone_is_an_error_that_says_so(tiny, tmp_path):
    exp = tiny(2, "training.epochs=2", "training.soup=2")
    soup = UniformSoup(tmp_path / "soup", exp, 0, pd.DataFrame({"id": ["a", "b"], "group": ["a", "b"]}))
    with pytest.raises(MaskfoldError, match="checkpoints of the soup") as refusal:
        soup.average(0)
    assert f"delete {tmp_path}" in str(refusal.value.hint)
