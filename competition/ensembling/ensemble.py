"""Load the networks of finished runs, and predict new cases with the mean of all networks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from competition.context import Context
from competition.data.cache import PreprocessedCase, get_or_build
from competition.data.image_types import Image
from competition.data.preprocessing import preprocess_case, write_image, write_with_channels
from competition.errors import MaskfoldError
from competition.inference.masks import class_probabilities
from competition.inference.precision import device_context
from competition.inference.predict import Prediction, predict_case_with_presence, within_region
from competition.io import remove_stale_temp, temporary_folder
from competition.runs.blend import Ensemble, WeightedMean
from competition.runs.cascade.first_stage import first_stage_for_prediction, fold_members
from competition.runs.imported import StoredTestPredictions, is_imported
from competition.runs.run import CACHE_FOLDER, Run
from competition.text import format_count

# Maximum size in bytes of all weights together. If they are larger, the networks are read from disk for each case.
MAX_WEIGHT_BYTES_IN_MEMORY = 2**32
SCRATCH_NAME = "test"  # the temporary folders with preprocessed cases are named after it


@dataclass(frozen=True)
class InMemoryCase:
    """Hold a case whose image is in memory; `EnsemblePredictor` takes it instead of a row of the case table.

    Attributes:
        id: name of the case in error messages.
        image: the image.
    """

    id: str
    image: Image


class EnsemblePredictor:
    """Predict cases with all networks of all runs of an ensemble.

    The memory does not grow with the number of runs and cases. It contains the probabilities of one case, their
    weighted sum, one batch of windows, and at most `MAX_WEIGHT_BYTES_IN_MEMORY` bytes of weights. All weight files are
    read once at the start, so that a damaged file is reported before the long prediction.

    Args:
        ensemble: the runs and their weights.
        row: one of the cases to predict, as a row of the case table or an `InMemoryCase`. The networks are built for
            the number of channels of this case.
        context: context with the trusted packages.
        scratch: folder in which cases are preprocessed, in temporary folders that are deleted afterwards.
        only_folds: whether to leave out networks that were trained on all cases. True if the ensemble is the first
            stage of another run.

    Raises:
        MaskfoldError: a weight file is missing or damaged, or belongs to another network; the case cannot be
            preprocessed; or the first stage of a run is missing or has changed.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        row: Any,
        context: Context = Context(),
        scratch: Path = CACHE_FOLDER,
        *,
        only_folds: bool = False,
    ) -> None:
        self.comp, self.scratch = ensemble.comp, scratch
        with suppress(OSError):  # not for each case, because the folder of all preprocessed cases may be large
            remove_stale_temp(scratch, SCRATCH_NAME)
        self.checkpoints = {str(run.folder): run.checkpoints() for run in ensemble.runs}
        size = sum(checkpoint.size for members in self.checkpoints.values() for checkpoint in members)
        # Preprocess before any network is loaded, so that a full disk or a damaged image is reported early.
        trained = [run for run, _ in ensemble.active if not is_imported(run.exp)]
        channels = {str(run.folder): count_channels(row, run, scratch) for run in trained[:1]}
        self.weighted_runs: list[tuple[Any, float]] = []
        for run, weight in ensemble.active:
            if is_imported(run.exp):
                self.weighted_runs.append((StoredTestPredictions(run), weight))
                continue
            folder = str(run.folder)
            if folder not in channels:
                channels[folder] = count_channels(row, run, scratch)
            members = fold_members(run) if only_folds else run.finished_members()
            networks = _RunNetworks(run, channels[folder], size <= MAX_WEIGHT_BYTES_IN_MEMORY, context, members)
            self.weighted_runs.append((networks, weight))
        # Runs that have the same first stage share its networks.
        self.first_stages: dict[str, EnsemblePredictor] = {}
        for run in trained:
            if run.exp.first_stage is not None and run.exp.first_stage not in self.first_stages:
                first = Ensemble((first_stage_for_prediction(run, context),), (1.0,))
                predictor = EnsemblePredictor(first, row, context, scratch, only_folds=True)
                self.first_stages[run.exp.first_stage] = predictor

    def probabilities(self, row: Any) -> np.ndarray[Any, Any]:
        """Return the probabilities of one case, averaged over all networks: (P, *file shape) float16, see `Prediction`.

        Args:
            row: row of the case table, or `InMemoryCase`.

        Raises:
            MaskfoldError: the case cannot be read or predicted, or it has another number of channels than the case
                for which the networks were built.
        """
        return self.predict(row).probabilities

    def predict(self, row: Any) -> Prediction:
        """Return the probabilities and the class presence of one case, averaged over all networks.

        Outside the region mask of a case, all pixels are background, see `within_region`.

        Args:
            row: row of the case table, or `InMemoryCase`.

        Raises:
            MaskfoldError: the case cannot be read or predicted, or it has another number of channels than the case
                for which the networks were built.
        """
        mean = WeightedMean(self.comp)
        first_stages: dict[str, np.ndarray[Any, Any]] = {
            name: class_probabilities(first.probabilities(row), self.comp) for name, first in self.first_stages.items()
        }
        for networks, weight in self.weighted_runs:
            if isinstance(networks, StoredTestPredictions):
                mean.add(networks.read(row).probabilities, weight)
                continue
            added = first_stages.get(str(networks.run.exp.first_stage))
            with _preprocessed(row, networks.run, self.scratch, added) as case:
                prediction = networks.predict(case)
                mean.add(prediction.probabilities, weight)
                mean.add_presence(prediction.presence, weight)
        return within_region(Prediction(mean.result(), mean.presence), self.comp, row)


def count_channels(row: Any, run: Run, scratch: Path) -> int:
    """Return how many channels a case has after preprocessing, including the channels that the first stage adds.

    Args:
        row: row of the case table, or `InMemoryCase`.
        run: the run, which defines the preprocessing and the first stage.
        scratch: folder in which the case is preprocessed, in a temporary folder.
    """
    with _preprocessed(row, run, scratch) as case:
        return int(case.image.shape[0]) + run.exp.first_stage_channels


class _RunNetworks:
    """Predict cases with the networks of one run, on the device of the run.

    Args:
        run: the run.
        channels: number of channels of a preprocessed case.
        in_memory: whether the networks stay in memory; if not, their weights are read again for each case.
        context: context with the trusted packages.
        members: (fold, seed) of each network.
    """

    def __init__(
        self, run: Run, channels: int, in_memory: bool, context: Context, members: list[tuple[int, int]]
    ) -> None:
        self.run, self.channels, self.context, self.members = run, channels, context, members
        self.device_context = device_context(run.exp)
        self.networks: list[Any] = list(self._iterate()) if in_memory else []
        if not in_memory:
            # Read all weights once, so that damaged weights are reported before the first prediction.
            for _ in self._iterate(reuse=True):
                pass

    def predict(self, case: PreprocessedCase) -> Prediction:
        if case.image.shape[0] != self.channels:
            # the channels of the image, without those that the first stage adds
            channels, expected = (n - self.run.exp.first_stage_channels for n in (case.image.shape[0], self.channels))
            raise MaskfoldError(
                f"Case {case.id} has {format_count(channels, 'channel')}, expected {expected}, as in training.",
                f"Use images with {format_count(expected, 'channel')}. Or train a run with prepare.channels set "
                "to grey or rgb.",
            )
        if self.networks:
            return predict_case_with_presence(
                self.networks, case, self.run.exp, self.device_context.device, self.device_context.autocast
            )
        mean, weight = WeightedMean(self.run.exp.competition), 1 / len(self.members)
        for network in self._iterate(reuse=True):
            prediction = predict_case_with_presence(
                [network], case, self.run.exp, self.device_context.device, self.device_context.autocast
            )
            mean.add(prediction.probabilities, weight)
            mean.add_presence(prediction.presence, weight)
        return Prediction(mean.result(), mean.presence)

    def _iterate(self, *, reuse: bool = False) -> Iterator[Any]:
        device = self.device_context.device
        return self.run.networks(self.channels, device, self.context, self.members, reuse=reuse)


@contextmanager
def _preprocessed(
    row: Any, run: Run, scratch: Path, added: np.ndarray[Any, Any] | None = None
) -> Iterator[PreprocessedCase]:
    """Preprocess a case in a temporary folder, which is deleted at the end of the `with` block.

    The test set is not stored as a whole, because it may be too large for the disk.

    Args:
        row: row of the case table, or `InMemoryCase`.
        run: the run, which defines the preprocessing.
        scratch: folder in which the temporary folder is made.
        added: (A, *file shape) channels to add to the image's channels; None to add none.

    Yields:
        The preprocessed case.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with temporary_folder(scratch / SCRATCH_NAME, sweep=False) as folder:
        if isinstance(row, InMemoryCase):
            path = get_or_build(
                folder, "loose", lambda target: write_image(target, row.image, run.exp, row.id), durable=False
            )
        else:
            path = preprocess_case(row, run.exp, folder, durable=False)
        case = PreprocessedCase.open(path)
        if added is not None:
            joined = get_or_build(
                folder, "joined", lambda target: write_with_channels(target, case, added), durable=False
            )
            yield PreprocessedCase.open(joined)
        else:
            yield case


def list_slices(row: Any) -> list[tuple[str, str]] | None:
    """Return (text, path) of each slice of a case in order; None if the case is a single file.

    The text is the part of the slice's file name that `{z}` in the pattern matches.

    Args:
        row: row of the case table.
    """
    texts = json.loads(row.slices)
    if texts is None:
        return None
    paths = next(iter(json.loads(row.images).values()))
    return list(zip(texts, paths, strict=True))
