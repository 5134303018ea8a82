"""Read the YAML files of competitions and experiments, check all types, and return immutable objects.

A `Competition` describes the data and rules of the host, and an `Experiment` describes the training on these data.
"""

from competition.config.competition import Competition, MetricConfig, RleConfig
from competition.config.experiment import Experiment, TargetConfig
from competition.config.instantiate import resolve_target
from competition.config.loading import load_competition, load_experiment, resolve_config
from competition.errors import MaskfoldError

__all__ = [
    "Competition",
    "Experiment",
    "MaskfoldError",
    "MetricConfig",
    "RleConfig",
    "TargetConfig",
    "load_competition",
    "load_experiment",
    "resolve_config",
    "resolve_target",
]
