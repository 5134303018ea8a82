"""Read the YAML files as strict, immutable objects.

`Competition` describes the host's data, and `Experiment` the training.
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
