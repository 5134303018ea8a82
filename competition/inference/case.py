"""One prepared case to probabilities on its file's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from competition.config.errors import MaskfoldError
from competition.config.experiment import Experiment
from competition.data.cache import PreparedCase
from competition.inference.gate import on_file_grid
from competition.inference.memory import within_memory
from competition.inference.predicted import Predicted
from competition.inference.window import Autocast, predict_gated


def predict_case(
    networks: Sequence[nn.Module],
    prepared: PreparedCase,
    exp: Experiment,
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
) -> np.ndarray:
    """The probabilities alone of `predict_both`."""
    return predict_both(networks, prepared, exp, device, autocast).probabilities


def predict_both(
    networks: Sequence[nn.Module],
    prepared: PreparedCase,
    exp: Experiment,
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
) -> Predicted:
    """Predicts a case and undoes its preparation.

    Args:
        networks: whose probabilities are averaged.
        prepared: the case.
        exp: the experiment.
        device: where the networks are.
        autocast: see `predict_prepared`.

    Returns:
        Probabilities and gate, on the file's own grid.

    Raises:
        MaskfoldError: see `predict_prepared`, or memory runs out; the message names the case.
    """
    try:
        image = prepared.network_image()
        found, gate = within_memory(lambda exp: predict_gated(networks, image, exp, device, autocast), exp, device)
    except MaskfoldError as error:
        raise MaskfoldError(
            f"Case {prepared.id} cannot be predicted: {error.wrong}", error.cure, status=error.status
        ) from error
    placed = None if gate is None else on_file_grid(gate, prepared.geometry, exp.patch.slices is not None)
    return Predicted(prepared.geometry.undo(found), placed)
