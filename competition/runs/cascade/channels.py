"""Add the class probabilities of an earlier run (the first stage) to preprocessed cases, as input channels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from competition.config.competition import Competition
from competition.context import Context
from competition.data.cache import PreprocessedCase, get_or_build
from competition.data.preprocessing import write_with_channels
from competition.inference.masks import merge_boundary_class
from competition.records import json_digest
from competition.runs.cascade.first_stage import check_same_cases, open_first_stage
from competition.runs.run import Run

JOINED_FORMAT = 1  # increase this number when a change of the code gives other channels


def class_probabilities(probabilities: np.ndarray, comp: Competition) -> np.ndarray:
    """Return only the probabilities of the K classes, (K, *spatial), without the background.

    A boundary class is merged into the classes, see `competition.inference.masks.merge_boundary_class`.

    Args:
        probabilities: (P, *spatial), with P = `comp.output_channels`; or (P + 1, *spatial), if a boundary class is the
            last channel.
        comp: the competition.
    """
    merged = merge_boundary_class(probabilities, comp) if len(probabilities) > comp.output_channels else probabilities
    return merged[len(merged) - len(comp.classes) :]


def join_first_stage(
    run: Run, prepared: Mapping[str, Path], cache: Path, context: Context = Context()
) -> dict[str, Path]:
    """Add the out-of-fold probabilities of the first stage to preprocessed cases, as further channels.

    The cases with these channels are written to further folders in the cache. The name of such a folder is a hash of
    two parts: the name of the case's folder without the channels, and the checksums of the predictions.

    Args:
        run: the run.
        prepared: folder of each preprocessed case, by id.
        cache: folder in which preprocessed cases are stored.
        context: context with the trusted packages and the log.

    Returns:
        Folder of each case with the channels, by id. If the run has no first stage, a copy of `prepared`.

    Raises:
        MaskfoldError: the first stage cannot be used, see `open_first_stage`; its cases or folds differ from the run's,
            see `check_same_cases`; or a prediction is damaged.
    """
    if run.exp.first_stage is None:
        return dict(prepared)
    first = open_first_stage(run.exp, context.trust)
    check_same_cases(run, first)
    oof, comp = first.oof(), run.exp.competition

    def build(target: Path, case: str, folder: Path) -> dict[str, Any]:
        return write_with_channels(target, PreprocessedCase.open(folder), class_probabilities(oof.read(case), comp))

    joined = {}
    for case, folder in prepared.items():
        key = json_digest(["first stage", JOINED_FORMAT, folder.name, oof.digests(case), first.exp.output_channels])
        joined[case] = get_or_build(cache, key[:32], partial(build, case=case, folder=folder))
    return joined
