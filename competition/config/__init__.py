"""Both YAML files as strict, immutable objects: `Competition` (what the host gave) and `Experiment` (how we attack it)."""

from competition.config.competition import Competition, Metric, Rle
from competition.config.errors import MaskfoldError
from competition.config.experiment import Experiment, Target
from competition.config.load import load_competition, load_experiment, resolved
from competition.config.target import resolve_target

__all__ = [
    "Competition",
    "Experiment",
    "MaskfoldError",
    "Metric",
    "Rle",
    "Target",
    "load_competition",
    "load_experiment",
    "resolve_target",
    "resolved",
]
