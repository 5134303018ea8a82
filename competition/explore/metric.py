"""Compare the YAML's metric with the host's metric."""

from __future__ import annotations

from competition.config.competition import YAML_SETTINGS, Competition, MetricConfig
from competition.config.metric import METRICS
from competition.config.profiles import PROFILES
from competition.explore.types import Findings


def find_other_metric(comp: Competition, findings: Findings) -> None:
    """Add a remark if the YAML names a host's profile and the metric differs from the host's."""
    profile = PROFILES.get(str(comp.submission.profile))
    host = None if profile is None else profile.host_metric
    if host is None:
        return
    expected = MetricConfig(**host)
    if comp.metric.has_own_code or comp.metric.sum is not None or comp.metric.name != expected.name:
        differing = ["name"]
    else:
        settings = [key for key in YAML_SETTINGS if key in METRICS.get(expected.name).settings]
        keys = ["average", "both_empty", *settings]
        differing = [key for key in keys if getattr(comp.metric, key) != getattr(expected, key)]
        if len(comp.classes) == 1 and comp.metric.average != "global" != expected.average and "average" in differing:
            differing.remove("average")  # with a single class, the mean over classes has no effect
    if not differing:
        return
    found = " and ".join(f"metric.{key} is {_as_yaml(getattr(comp.metric, key))}" for key in differing)
    text = ", ".join(f"{key}: {_as_yaml(value)}" for key, value in host.items())
    findings.add_remark(
        "metric",
        "",
        "",
        f"{found}, but the host of {comp.submission.profile} scores otherwise.",
        f"Set `metric: {{{text}}}` to compare scores with the leaderboard.",
    )


def _as_yaml(value: object) -> str:
    return "null" if value is None else str(value)
