"""Add the class probabilities of a first stage to preprocessed cases, as further channels."""

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
from competition.io import json_digest
from competition.runs.cascade.first_stage import check_same_cases, open_first_stage
from competition.runs.run import Run

JOINED_FORMAT = 1  # increase it when the channels that are added to a case change


def class_probabilities(probabilities: np.ndarray, comp: Competition) -> np.ndarray:
    """Return the probabilities of the classes (K, *spatial), without the background and with the boundary merged.

    Args:
        probabilities: (P, *spatial), P = `comp.output_channels`, or one more with the boundary class last.
        comp: the competition.
    """
    merged = merge_boundary_class(probabilities, comp) if len(probabilities) > comp.output_channels else probabilities
    return merged[len(merged) - len(comp.classes) :]


def join_first_stage(
    run: Run, prepared: Mapping[str, Path], cache: Path, context: Context = Context()
) -> dict[str, Path]:
    """Return the preprocessed cases with the out-of-fold probabilities of the first stage as further channels.

    The folder of such a case has a name of its own in the cache: a hash of the folder without the channels and of the
    stored predictions.

    Args:
        run: the run.
        prepared: folder of each preprocessed case, by id.
        cache: folder of the preprocessed cases.
        context: context with the trusted packages and the log.

    Returns:
        The folders by id; `prepared` itself, if the run has no first stage.

    Raises:
        MaskfoldError: as for `open_first_stage` and `check_same_cases`; or a prediction is damaged.
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
