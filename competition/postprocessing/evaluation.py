"""Scores of lists of steps on out-of-fold predictions, in several processes; a case is read once for all lists."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config.postprocess import PostprocessConfig, StepConfig
from competition.data.masks import load_instances, load_mask
from competition.errors import MaskfoldError
from competition.metrics.instances import Labels, connected_components
from competition.metrics.scoring import score_class, split_classes
from competition.postprocessing.case import ClassMask
from competition.postprocessing.pipeline import apply_ordering, drop_passing_gates, run_steps
from competition.postprocessing.steps import TruthSizes
from competition.process import exit_with_parent
from competition.runs.blend import Ensemble, EnsembleOof

if TYPE_CHECKING:
    import pandas as pd

MAX_SERIAL_CASES = 8  # up to this many cases, starting processes takes longer than the work
Steps = tuple[StepConfig, ...]
StepsByClass = dict[int, tuple[Steps, ...]]  # the lists of steps to score, by class
ScoreRows = dict[tuple[int, Steps], dict[str, Any]]


class OofScores:
    """Scores of lists of steps on every case of an ensemble, cached. A context manager, since it holds processes.

    Args:
        ensemble: the runs whose out-of-fold predictions are scored.
        workers: processes; None: one per core.

    Raises:
        MaskfoldError: the runs share no out-of-fold case.
    """

    def __init__(self, ensemble: Ensemble, workers: int | None = None) -> None:
        self.ensemble, self.oof = ensemble, ensemble.out_of_fold()
        self.rows = shared_case_rows(ensemble)
        self.fold_of = self.oof.fold_of()
        self.cases = list(self.rows)
        self.scores: dict[tuple[int, Steps], dict[str, dict[str, Any]]] = {}  # by (class, steps), then by case
        self.pool = ProcessPool(CaseScorer(self.oof, self.rows, ensemble.runs[0].exp.postprocess), self.cases, workers)

    def __enter__(self) -> OofScores:
        self.pool.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.pool.__exit__(kind, *rest)

    def score(self, requests: StepsByClass) -> None:
        """Compute the missing scores of the requested lists of steps and add them to `scores`."""
        new = {
            index: tuple(dict.fromkeys(steps for steps in lists if (index, steps) not in self.scores))
            for index, lists in requests.items()
        }
        new = {index: lists for index, lists in new.items() if lists}
        if not new:
            return
        for case, rows in zip(self.cases, self.pool.map("score", new), strict=True):
            for key, row in rows.items():
                self.scores.setdefault(key, {})[case] = row

    def truth_sizes(self) -> list[list[TruthSizes]]:
        """Return the true sizes of each case, by class."""
        return list(self.pool.map("truth_sizes", None))

    def score_table(self, steps: Callable[[str, int], Steps]) -> pd.DataFrame:
        """Return score rows (id, fold, class, score, dice, …) of all cases, by the steps of each case and class."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"id": case, "fold": self.fold_of[case], **self.scores[index, steps(case, index)][case]}
                for case in self.cases
                for index in range(len(self.ensemble.comp.classes))
            ]
        )


def shared_case_rows(ensemble: Ensemble) -> dict[str, SimpleNamespace]:
    """Return the rows of the case table, by id, of the cases that all runs of an ensemble predicted out of fold.

    Raises:
        MaskfoldError: there is no such case.
    """
    fold_of = ensemble.out_of_fold().fold_of()
    rows = ensemble.runs[0].rows(fold_of)
    if not rows:
        raise MaskfoldError(
            "The runs have no out-of-fold case in common.", "Finish the same folds of each run, or name other runs."
        )
    return rows


@dataclass(frozen=True)
class CaseScorer:
    """Scores one case; runs in a worker process.

    Attributes:
        oof: the out-of-fold predictions.
        rows: rows of the case table by id.
        settings: the part of the post-processing that is not searched but applied to every case: `number`.
    """

    oof: EnsembleOof
    rows: dict[str, Any]
    settings: PostprocessConfig

    def score(self, case: str, requests: StepsByClass) -> ScoreRows:
        """Return score rows by (class, steps)."""
        comp, row = self.oof.comp, self.rows[case]
        needs_presence = any(
            step.step.needs_presence for lists in requests.values() for steps in lists for step in steps
        )
        presence = self.oof.presence(case) if needs_presence else None
        evidence = apply_ordering(self.oof.read(case), comp, self.settings, row, presence)
        truth = load_mask(comp, row)
        objects = load_instances(comp, row) if comp.instances else None
        spacing = json.loads(row.spacing)
        result: ScoreRows = {}
        for index, lists in requests.items():
            cache: dict[Steps, ClassMask] = {}
            scores: dict[Steps | None, dict[str, Any]] = {}  # many gates give the same mask: score it once
            for steps in lists:
                active = drop_passing_gates(evidence, index, steps)
                if active not in scores:
                    mask = run_steps(evidence, index, active, cache) if active is not None else evidence.empty
                    scores[active] = score_class(mask.mask, truth, comp, index, spacing, objects, mask.objects)
                result[index, steps] = scores[active]
        return result

    def truth_sizes(self, case: str, _: None) -> list[TruthSizes]:
        """Return the true sizes of each class."""
        comp, row = self.oof.comp, self.rows[case]
        objects = load_instances(comp, row) if comp.instances else None
        return [_sizes_of(mask, objects) for mask in split_classes(load_mask(comp, row), comp)]


def _sizes_of(mask: np.ndarray[Any, Any], objects: Labels | None) -> TruthSizes:
    labels = connected_components(mask) if objects is None else np.where(mask, objects, 0)
    sizes = np.bincount(labels.ravel().astype(np.int64))[1:]
    return TruthSizes(int(mask.sum()), tuple(int(size) for size in sizes if size))


# Processes


class ProcessPool:
    """Calls a method of one object for each case, in several processes. A context manager.

    Args:
        worker: the object; its methods take a case and an argument. It is pickled once per process.
        cases: the cases.
        workers: processes; None: one per core. 1 runs in this process.
    """

    def __init__(self, worker: Any, cases: Sequence[str], workers: int | None = None) -> None:
        self.worker, self.cases = worker, cases
        self.workers = min(workers or _count_cores(), len(cases)) if len(cases) > MAX_SERIAL_CASES else 1
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> ProcessPool:
        if self.workers > 1:  # spawn, since a fork of a process with torch's threads may hang
            self._other_processes = set(active_children())
            self._pool = ProcessPoolExecutor(
                self.workers,
                mp_context=get_context("spawn"),
                initializer=_init_worker,
                initargs=(self.worker, os.getpid()),
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            if kind is not None:  # do not wait for the cases in progress
                for process in set(active_children()) - self._other_processes:
                    process.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def map(self, method: str, argument: Any) -> Iterator[Any]:
        """Yield the method's results in the order of the cases.

        Raises:
            MaskfoldError: a process was killed, or the method raised it.
        """
        if self._pool is None:
            for case in self.cases:
                yield getattr(self.worker, method)(case, argument)
            return
        chunk = max(1, min(8, len(self.cases) // (4 * self.workers)))
        try:
            with _sigint_blocked():  # the pool starts its processes here
                results = self._pool.map(
                    _work, [method] * len(self.cases), self.cases, [argument] * len(self.cases), chunksize=chunk
                )
            for failure, result in results:
                if failure is not None:
                    raise MaskfoldError(failure[0], failure[1], status=failure[2])
                yield result
        except BrokenProcessPool as broken:
            raise MaskfoldError(
                "A process that scored out-of-fold predictions was killed, probably out of memory.",
                "Run it again with fewer cores (taskset -c 0).",
            ) from broken


_worker: Any = None  # the worker of this process


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT in processes started here: Ctrl-C reaches all of them, and this process handles it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _init_worker(worker: Any, parent: int) -> None:
    global _worker
    os.environ["OMP_NUM_THREADS"] = "1"
    exit_with_parent(parent)  # so that no worker survives a killed parent
    _worker = worker


def _work(method: str, case: str, argument: Any) -> tuple[tuple[str, str, int] | None, Any]:
    """Return an error as plain values, since exceptions may not survive pickling."""
    try:
        return None, getattr(_worker, method)(case, argument)
    except MaskfoldError as error:
        return (error.message, error.hint, error.status), None


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
