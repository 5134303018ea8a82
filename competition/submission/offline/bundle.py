"""A bundle's folder, read back as the blend that it was made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from competition.config import Experiment, MaskfoldError, load_experiment
from competition.config.postprocess import Postprocess
from competition.submission.blend import Blend
from competition.submission.predictor import EXPERIMENT, folds_of, here, no_cases
from competition.training.runs import CvRun

FILE, FORMAT = "bundle.json", 1


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds.

    Attributes:
        folder: the bundle.
        blend: its runs, in folders inside, with their weights.
        settings: the post-processing.
        ending: what the host's ids have behind an image's id, such as `.png`.
        trust: packages of one's own that came along.
        onnx: whether the networks are there as ONNX, too.
    """

    folder: Path
    blend: Blend
    settings: Postprocess
    ending: str
    trust: tuple[str, ...]
    onnx: bool

    @classmethod
    def read(cls, folder: Path, root: Path, accelerator: str | None = None) -> Bundle:
        """Reads a bundle for a competition that is mounted at `root`.

        Args:
            folder: the bundle.
            root: the competition's folder.
            accelerator: cpu or cuda; None: as the runs ask for, if it is there.

        Raises:
            MaskfoldError: a file is missing or of another format.
        """
        try:
            plain: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
            if plain["format"] != FORMAT:
                raise ValueError(f"format {plain['format']}")
        except (OSError, ValueError, KeyError) as error:
            raise MaskfoldError(f"{folder / FILE} cannot be read: {error}.", "Export the bundle again.") from error
        trust = tuple(plain["trust"])
        runs = []
        for one in plain["runs"]:
            place = folder / one["folder"]
            exp = _placed(here(load_experiment(place / EXPERIMENT, trust=trust)), root, accelerator)
            runs.append(CvRun(place, exp, no_cases(), folds_of(place), one["name"]))
        blend = Blend(tuple(runs), tuple(float(one["weight"]) for one in plain["runs"]))
        return cls(
            folder, blend, Postprocess.model_validate(plain["postprocess"]), plain["ending"], trust, plain["onnx"]
        )


def _placed(exp: Experiment, root: Path, accelerator: str | None) -> Experiment:
    comp = exp.competition.model_copy(update={"root": root.absolute()})
    run = exp.run if accelerator is None else exp.run.model_copy(update={"accelerator": accelerator})
    return exp.model_copy(update={"competition": comp, "run": run})
