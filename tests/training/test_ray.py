"""Folds on a Ray cluster: lost with their machine, taken up by another one, and the same as on one machine."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from competition.config.experiment import HardwareConfig
from competition.context import Context
from competition.errors import MaskfoldError
from competition.runs.fold import FoldJob, FoldResult
from competition.runs.lock import is_free, run_lock
from competition.runs.run import Run
from competition.training.cross_validate import make_jobs, open_run, run_cv, summarize_run
from competition.training.executors import make_executor
from competition.training.ray_executor import FoldResources, RayExecutor, run_fold_task

pytestmark = pytest.mark.xdist_group("serial")  # a cluster takes the machine's cores

STAYS = (sys.executable, "-S", "-c", f"import time; print('began', flush=True); time.sleep(300)  # of {os.getpid()}")
WRITES = (
    sys.executable,
    "-S",
    "-c",
    "import sys, os; print('epoch 1'); print('SomeWarning: noise'); "
    "open(os.path.join(os.path.dirname(sys.argv[1]), 'result.json'), 'w').write('{}')",
)


# What a fold asks for


def machine(cpus: int, gpus: int = 0) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}


@pytest.mark.parametrize(
    ("run", "machines", "wanted"),
    [
        ({"parallel_folds": 5}, [machine(8)], (1, 0, 1)),
        ({"parallel_folds": 2}, [machine(8), machine(8)], (8, 0, 8)),
        ({"parallel_folds": 2}, [machine(0), machine(8), machine(4)], (4, 0, 4)),  # either can take over from the other
        ({"threads": 3, "parallel_folds": 2}, [machine(8)], (3, 0, 3)),
        ({"threads": 3, "cpus": 6}, [machine(8)], (6, 0, 3)),
        ({"parallel_folds": 4}, [machine(2), machine(16, 4)], (4, 1, 4)),  # only one of them has GPUs
        ({"devices": 2, "parallel_folds": 2}, [machine(16, 4)], (8, 2, 8)),
        ({"devices": 2, "parallel_folds": 9}, [machine(4)], (2, 0, 2)),
        ({"gpus": 0.5, "parallel_folds": 4}, [machine(16, 2)], (4, 0.5, 4)),
        ({"accelerator": "cpu"}, [machine(4, 1)], (4, 0, 4)),
        ({"gpus": 0}, [machine(4, 1)], (4, 0, 4)),
    ],
)
def test_a_fold_asks_for_what_run_says_or_a_fair_share(run, machines, wanted):
    need = FoldResources.from_settings(HardwareConfig(executor="ray", **run), machines)
    assert (need.cpus, need.gpus, need.threads) == wanted


@pytest.mark.parametrize(
    ("run", "machines"),
    [
        ({"cpus": 16}, [machine(8), machine(8)]),
        ({"devices": 4}, [machine(8, 2), machine(8, 2)]),
        ({"gpus": 1}, [machine(8)]),
    ],
)
def test_what_no_machine_has_is_refused_and_not_waited_for(run, machines):
    with pytest.raises(MaskfoldError, match="A fold requires .* machines have 8 CPUs"):
        FoldResources.from_settings(HardwareConfig(executor="ray", **run), machines)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["run.gpus=1.5"], r"gpus.* found 1\.5"),
        (["run.devices=2", "run.gpus=1"], r"gpus. must be at least 2.*devices.* found 1"),
        (["run.executor=rey"], "ray"),
    ],
)
def test_words_that_make_no_sense_are_refused(tiny, words, part):
    with pytest.raises(MaskfoldError, match=part):
        tiny(2, *words)


def test_where_and_how_fast_is_not_in_a_runs_name(tiny, tmp_path):
    folders = {
        open_run(tiny(2, *words), "tiny", root=tmp_path).folder
        for words in (
            [],
            ["run.executor=ray", "run.parallel_folds=2"],
            ["run.cpus=2", "run.gpus=0.5"],
            ["run.devices=2"],
        )
    }
    assert len(folders) == 1


def test_without_ray_the_cure_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MaskfoldError, match=r'pip install "maskfold\[ray\]"'):
        make_executor(tiny(2, "run.executor=ray")).run([], lambda line: None)


# The task, in this process


def stub(root: Path, number: int = 0) -> FoldJob:
    """A job for the stubs above."""
    (root / "run").mkdir(exist_ok=True)
    return FoldJob(root / "run", root / "run" / f"fold_{number}", number, 0, root, 1)


def task(job: FoldJob, here: Path, command=WRITES, version: str | None = None):
    import competition

    return run_fold_task(job.to_json(), str(here), command, False, version or competition.__version__)


def test_a_machine_that_does_not_share_the_folder_or_the_version_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = stub(tmp_path)
    assert str(tmp_path / "absent") in str(task(job, tmp_path / "absent"))
    assert str(tmp_path / "other") in str(task(dataclasses.replace(job, run=tmp_path / "other"), tmp_path))
    assert "expected 0.0.0" in str(task(job, tmp_path, version="0.0.0"))
    assert not job.folder.exists()
    assert task(job, tmp_path) is None and (job.folder / "result.json").exists()


def test_what_a_fold_died_of_comes_back_from_the_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = (
        "import sys, os, json; json.dump({'message': 'The loss is nan.', 'hint': 'Lower it.', 'status': 1}, "
        "open(os.path.join(os.path.dirname(sys.argv[1]), 'error.json'), 'w')); sys.exit(1)"
    )
    outcome = task(stub(tmp_path), tmp_path, (sys.executable, "-S", "-c", program))
    assert isinstance(outcome, MaskfoldError) and str(outcome) == "Fold fold_0: The loss is nan. Lower it."


def test_a_lock_is_waited_for_as_long_as_was_said(tmp_path):
    said: list[str] = []
    with run_lock(tmp_path):
        assert not is_free(tmp_path)
        with (
            pytest.raises(MaskfoldError, match=f"in use by process {os.getpid()}"),
            run_lock(tmp_path, 1.5, said.append),
        ):
            pass
    assert is_free(tmp_path) and len(said) == 1
    with run_lock(tmp_path, 0.5, said.append):
        assert len(said) == 1  # nothing to wait for


# A cluster


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """A cluster of two machines with one CPU each, and this process connected to the first."""
    ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "maskfold[ray]"')
    from ray.cluster_utils import Cluster

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    both = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    both.second = both.add_node(**small)
    both.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", both.address)
    handler = signal.getsignal(signal.SIGTERM)
    yield both
    ray.shutdown()
    both.shutdown()
    signal.signal(signal.SIGTERM, handler)


def children() -> list[psutil.Process]:
    """This test's stubs that are running, anywhere on this machine, started by whichever worker."""
    return [process for process in psutil.process_iter(["cmdline"]) if STAYS[-1] in (process.info["cmdline"] or ())]


@pytest.mark.slow
def test_lines_reach_the_driver_and_results_are_awaited(cluster, tmp_path):
    said: list[str] = []
    jobs = [stub(tmp_path, number) for number in range(3)]
    RayExecutor(HardwareConfig(executor="ray", parallel_folds=2), WRITES).run(jobs, said.append)
    assert all((job.folder / "result.json").exists() for job in jobs)
    for number in range(3):
        assert f"fold_{number} | epoch 1" in said and any(
            line.startswith(f"fold_{number} | starts on") for line in said
        )
    assert not any("noise" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt("SIGTERM"), ValueError("pruned")])
def test_what_stops_the_driver_stops_the_folds(cluster, tmp_path, error):
    handler = signal.getsignal(signal.SIGTERM)
    jobs = [stub(tmp_path, number) for number in range(4)]

    def alive() -> None:
        if (
            sum(
                "began" in (job.folder / "output.txt").read_text()
                for job in jobs
                if (job.folder / "output.txt").exists()
            )
            == 2
        ):
            raise error

    with pytest.raises(type(error), match=str(error)):
        RayExecutor(HardwareConfig(executor="ray", parallel_folds=3), STAYS).run(jobs, lambda line: None, alive)
    assert not children()
    assert not jobs[2].folder.exists() and not jobs[3].folder.exists()  # one waited for a CPU, one for its turn
    assert signal.getsignal(signal.SIGTERM) is handler


def trained(run: Run, alive=lambda: None) -> list[str]:
    said: list[str] = []
    run.write()
    run_cv(run, Context(say=said.append), should_stop=alive)
    return said


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_folds_of_a_lost_machine_end_as_if_nothing_had_happened(cluster, tiny, tmp_path):
    words = ["folds.k=3", "training.epochs=30", "training.ema=0.9", "run.threads=1"]
    near = open_run(tiny(2, *words), "tiny", root=tmp_path / "near")
    trained(near)
    far = open_run(tiny(2, *words, "run.executor=ray", "run.parallel_folds=3"), "tiny", root=tmp_path / "far")
    lost: list[str] = []

    def alive() -> None:
        begun = [job for job in make_jobs(far) if (job.folder / "metrics.jsonl").exists()]
        if not lost and len(begun) == 2 and all((job.folder / "last.pt").exists() for job in begun):
            assert not any((job.folder / "result.json").exists() for job in begun)  # in the middle of both
            lost.append(cluster.second.node_id)
            cluster.remove_node(cluster.second, allow_graceful=False)

    said = trained(far, alive)
    assert lost
    starts = {
        name: sum(line.startswith(f"{name} | starts on") for line in said) for name in ("fold_0", "fold_1", "fold_2")
    }
    assert sorted(starts.values()) == [1, 1, 2]
    taken_up = next(name for name, count in starts.items() if count == 2)
    assert any(line.startswith(f"{taken_up} | resumed from step") for line in said)
    for job in make_jobs(far):
        twin = near.folder / job.folder.name
        one, two = load_file(twin / "weights.safetensors"), load_file(job.folder / "weights.safetensors")
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
        assert FoldResult.read(job.folder).score == FoldResult.read(twin).score
        assert (job.folder / "scores.csv").read_bytes() == (twin / "scores.csv").read_bytes()
    here, there = summarize_run(near), summarize_run(far)
    assert (here.score, here.low, here.high, here.dice) == (there.score, there.low, there.high, there.dice)
