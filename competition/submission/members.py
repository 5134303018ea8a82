"""The networks of finished runs, and what they say together of a case they have never seen."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from competition.config import MaskfoldError
from competition.data.cache import fetch
from competition.data.prepare import PreparedCase, prepare_case, write_image
from competition.data.readers import Picture
from competition.inference.predicted import Predicted
from competition.submission.blend import Blend, Mixture
from competition.training.find import finished
from competition.training.job import FoldResult
from competition.training.runs import CACHE, CvRun

KEPT_BYTES = 2**32  # of weights that stay in memory; beyond, networks are read again for each case


@dataclass(frozen=True)
class Checkpoint:
    """One member's weights.

    Attributes:
        path: the file.
        fold: its fold; -1 is the fit on all cases.
        seed: which of the experiment's seeds.
        sha256: of the file, hexadecimal.
        size: bytes.
    """

    path: Path
    fold: int
    seed: int
    sha256: str
    size: int


def checkpoints(run: CvRun) -> list[Checkpoint]:
    """The weights of a run's finished members.

    Raises:
        MaskfoldError: a file is missing.
    """
    found = []
    for fold, seed in finished(run):
        folder = run.member_folder(fold, seed)
        result = FoldResult.read(folder)
        path = folder / (result.weights if result is not None else "weights.safetensors")
        try:
            with open(path, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise MaskfoldError(
                f"The weights {path} cannot be read: {error.strerror}.",
                f"Copy the file back, or delete {folder} and run the fold again.",
            ) from error
        found.append(Checkpoint(path, fold, seed, digest, path.stat().st_size))
    return found


@dataclass(frozen=True)
class Loose:
    """An image in memory, in the place of a row of the case table.

    Attributes:
        id: what errors call it.
        picture: the image.
    """

    id: str
    picture: Picture


class Ensemble:
    """Predicts cases with all members of all runs of a blend.

    Memory holds one case's probabilities, the weighted sum, one batch of windows, and up to `KEPT_BYTES` of weights,
    however many runs and cases there are. All weights are loaded once at the start, so that a damaged file is told
    before hours go by.

    Args:
        blend: the runs and their weights.
        row: a case that tells how many channels there are: a row of the case table, or `Loose`.
        trust: packages besides the known ones that `target` may name.
        scratch: the folder in which a case is prepared; what it holds goes away afterwards.

    Raises:
        MaskfoldError: a file of weights is missing, damaged or does not fit; the case cannot be prepared.
    """

    def __init__(self, blend: Blend, row: Any, trust: tuple[str, ...] = (), scratch: Path = CACHE) -> None:
        self.comp, self.scratch = blend.comp, scratch
        self.checkpoints = {str(run.folder): checkpoints(run) for run in blend.runs}
        size = sum(one.size for found in self.checkpoints.values() for one in found)
        with _prepared(row, blend.active[0][0], scratch) as first:  # also: the disk has room, and the image can be read
            channels = {str(blend.active[0][0].folder): first.image.shape[0]}
        self.parts: list[tuple[Any, float]] = []
        for run, weight in blend.active:
            if str(run.folder) not in channels:
                with _prepared(row, run, scratch) as case:
                    channels[str(run.folder)] = case.image.shape[0]
            self.parts.append(
                (
                    _Part(run, self.checkpoints[str(run.folder)], channels[str(run.folder)], size <= KEPT_BYTES, trust),
                    weight,
                )
            )

    def probabilities(self, row: Any) -> np.ndarray[Any, Any]:
        """Probabilities (P, *file shape) float16 of one case.

        Args:
            row: a row of the case table, or `Loose`.

        Raises:
            MaskfoldError: the case cannot be read or predicted, or has other channels than the first one.
        """
        return self.predict(row).probabilities

    def predict(self, row: Any) -> Predicted:
        """Probabilities and gate of one case; see `probabilities`."""
        mixture = Mixture(self.comp)
        for part, weight in self.parts:
            with _prepared(row, part.run, self.scratch) as case:
                found = part.predict(case)
                mixture.add(found.probabilities, weight)
                mixture.add_gate(found.gate, weight)
        return Predicted(mixture.result(), mixture.gate)


def channels_of(row: Any, run: CvRun, scratch: Path) -> int:
    """How many channels a case has when it is prepared for a run."""
    with _prepared(row, run, scratch) as case:
        return int(case.image.shape[0])


class _Part:
    """The networks of one run, on its device."""

    def __init__(
        self, run: CvRun, found: Sequence[Checkpoint], channels: int, kept: bool, trust: tuple[str, ...]
    ) -> None:
        from competition.inference.place import place_of
        from competition.model.network import build_network

        self.run, self.found, self.channels = run, found, channels
        self.place = place_of(run.exp)
        self._build = lambda: build_network(run.exp, channels * (run.exp.patch.slices or 1), trust, pretrained=False)
        self.networks: list[Any] = []
        spare = None
        for one in found:
            network = self._load(one, spare)
            if kept:
                self.networks.append(network)
            else:
                spare = network

    def predict(self, case: PreparedCase) -> Predicted:
        from competition.inference.case import predict_both

        if (found := case.image.shape[0]) != self.channels:
            raise MaskfoldError(
                f"Case {case.id} has {found} channels, but the networks take {self.channels}.",
                "Give images like the first one, or set prepare.channels to grey or rgb before training.",
            )
        if self.networks:
            return predict_both(self.networks, case, self.run.exp, self.place.device, self.place.autocast)
        mixture, spare = Mixture(self.run.exp.competition), None
        for one in self.found:
            spare = self._load(one, spare)
            found = predict_both([spare], case, self.run.exp, self.place.device, self.place.autocast)
            mixture.add(found.probabilities, 1 / len(self.found))
            mixture.add_gate(found.gate, 1 / len(self.found))
        return Predicted(mixture.result(), mixture.gate)

    def _load(self, one: Checkpoint, spare: Any = None) -> Any:
        from competition.inference.weights import load_weights

        network = spare if spare is not None else self._build()
        load_weights(network, one.path)
        return network.to(self.place.device).eval()


@contextmanager
def _prepared(row: Any, run: CvRun, scratch: Path) -> Iterator[PreparedCase]:
    """A case prepared for a run in a folder that goes away afterwards: test sets may be larger than the disk."""
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".test-", dir=scratch))
    try:
        if isinstance(row, Loose):
            yield PreparedCase.open(
                fetch(folder, "loose", lambda place: write_image(place, row.picture, run.exp, row.id))
            )
        else:
            yield PreparedCase.open(prepare_case(row, run.exp, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def plain_rows(table: Any) -> list[SimpleNamespace]:
    """The rows of a case table as plain objects."""
    return [SimpleNamespace(**{str(name): value for name, value in row.items()}) for row in table.to_dict("records")]


def slices_of(row: Any) -> list[tuple[str, str]] | None:
    """(text of {z}, path) of a stack's slices in order; None for a case that is one file."""
    texts = json.loads(row.slices)
    if texts is None:
        return None
    paths = next(iter(json.loads(row.images).values()))
    return list(zip(texts, paths, strict=True))
