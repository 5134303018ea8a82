"""Which trial comes next, and which is given up early: Optuna's samplers and pruners."""

from __future__ import annotations

from typing import Any

import numpy as np

from competition.config.study import Study


def sampler(study: Study, seed: int, number: int, repeated: bool = False) -> Any:
    """The sampler for one trial.

    Args:
        study: which one.
        seed: of the experiment.
        number: how many trials Optuna has; the trial's seed follows from it, so that a resumed study repeats nothing.
        repeated: whether the draw before was a trial that is there already: then the next one is drawn at random.
    """
    from optuna import samplers

    child = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if study.sampler == "random" or repeated:
        return samplers.RandomSampler(seed=child)
    if study.sampler == "gp":
        return samplers.GPSampler(seed=child, n_startup_trials=study.startup_trials)
    return samplers.TPESampler(seed=child, n_startup_trials=study.startup_trials, multivariate=True, group=True)


def pruner(study: Study) -> Any:
    """The pruner."""
    from optuna import pruners

    if study.pruner == "wilcoxon":
        return pruners.WilcoxonPruner(p_threshold=study.p_value, n_startup_steps=8)
    if study.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=study.startup_trials)
    if study.pruner == "hyperband":
        return pruners.HyperbandPruner()
    return pruners.NopPruner()
