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
from competition.inference.memory import within_memory
from competition.inference.window import Autocast, predict_prepared


def predict_case(networks: Sequence[nn.Module], prepared: PreparedCase, exp: Experiment,
                 device: torch.device | str = "cpu", autocast: Autocast = nullcontext) -> np.ndarray:
    """Predicts a case and undoes its preparation.

    Args:
        networks: whose probabilities are averaged.
        prepared: the case.
        exp: the experiment.
        device: where the networks are.
        autocast: see `predict_prepared`.

    Returns:
        (P, *file shape) float16, P = `exp.outputs`: background first where classes are exclusive, the boundary class
        of `prepare.boundary` last.

    Raises:
        MaskfoldError: see `predict_prepared`, or memory runs out; the message names the case.
    """
    try:
        image = prepared.network_image()
        probabilities = within_memory(lambda exp: predict_prepared(networks, image, exp, device, autocast), exp, device)
    except MaskfoldError as error:
        raise MaskfoldError(f"Case {prepared.id} cannot be predicted: {error.wrong}", error.cure,
                            status=error.status) from error
    return prepared.geometry.undo(probabilities)
