"""Explore a competition's data before training: measure every case, and list all faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from competition.config.competition import YAML_SETTINGS, Competition, MetricConfig
from competition.config.metric import METRICS
from competition.config.profiles import PROFILES
from competition.data.case_files import count_test_images, has_hidden_test
from competition.data.cases import TURNED_IMAGES_HINT, find_turned_images, turned_images_message
from competition.data.duplicates import ImagePair
from competition.data.patterns import HIDDEN_TEST_HINT
from competition.errors import MaskfoldError
from competition.explore.cases import measure_case
from competition.explore.contrasts import ChannelContrast, rank_contrasts
from competition.explore.discovery import find_cases
from competition.explore.findings import compare_cases, find_mixed_channels
from competition.explore.groups import assign_groups
from competition.explore.shifts import DistributionShift, find_shifts
from competition.explore.suggest import suggest_experiment
from competition.explore.types import CaseStats, Finding, Findings
from competition.text import format_count, is_or_are

__all__ = ["CaseStats", "Exploration", "Finding", "explore"]

Progress = Callable[[Iterator[Any], int], Iterator[Any]]


@dataclass(frozen=True, eq=False)
class Exploration:
    """Hold the result of an exploration.

    Attributes:
        comp: the competition.
        cases: training cases, then test cases, each sorted by id; unreadable cases are included.
        findings: faults and remarks.
        pairs: pairs of cases that look nearly the same; the cases are given by their indices in `cases`.
        contrasts: contrast between foreground and background in each channel, highest contrast first.
        shifts: comparisons of training and test cases.
        snippet: suggested sections of an experiment, in YAML.
    """

    comp: Competition
    cases: list[CaseStats]
    findings: list[Finding]
    pairs: list[ImagePair]
    contrasts: list[ChannelContrast]
    shifts: list[DistributionShift]
    snippet: str

    @property
    def faults(self) -> list[Finding]:
        """The findings that stop `cv` or make its score wrong."""
        return [finding for finding in self.findings if finding.severity == "fault"]

    @property
    def remarks(self) -> list[Finding]:
        """The findings that may be intended."""
        return [finding for finding in self.findings if finding.severity == "remark"]

    def cases_of(self, split: str) -> list[CaseStats]:
        """Return the cases of one split, `train` or `test`."""
        return [case for case in self.cases if case.split == split]

    def used_cases(self, split: str) -> list[CaseStats]:
        """Return the cases of one split, `train` or `test`, without the cases that `cv` skips."""
        return [case for case in self.cases_of(split) if not case.skipped]

    def undeclared_labels(self) -> dict[int, tuple[int, int]]:
        """Return label values that belong to no class, with the number of cases and of voxels that have each value."""
        cases: Counter[int] = Counter(value for case in self.cases for value in case.undeclared_labels)
        voxels: Counter[int] = Counter()
        for case in self.cases:
            voxels.update(case.undeclared_labels)
        return {value: (cases[value], voxels[value]) for value in sorted(cases)}


def _remark_on_hidden_test(comp: Competition, train: int, test: int, findings: Findings) -> None:
    if has_hidden_test(test, train):
        counts = f"{format_count(test, 'test case')}, but {format_count(train, 'training case')}"
        shown = f"There {is_or_are(test)} only {counts}."
        findings.add_remark("files", "test", "", shown, HIDDEN_TEST_HINT)


def explore(comp: Competition, progress: Progress = lambda rows, _: rows) -> Exploration:
    """Read every case once in the same way as `cv`, and collect all faults instead of stopping at the first.

    Only one case is in memory at a time.

    Args:
        comp: the competition. If `on_bad_case` is `skip`, the error of a bad case is only a remark, because `cv` skips
            such cases.
        progress: function that wraps the iterator of the cases and shows the progress; it also receives the number of
            cases.

    Raises:
        MaskfoldError: the root folder of the competition does not exist, or no image matches `train.images` (exit
            status 2).
    """
    findings = Findings(skip=comp.on_bad_case == "skip")
    # with `stop`, the loaders raise each error, and the checks below record it
    comp = comp.model_copy(update={"on_bad_case": "stop"})
    files = {"train": find_cases(comp, "train", findings)}
    if comp.test is not None:
        try:
            files["test"] = find_cases(comp, "test", findings)
        except MaskfoldError as error:
            if error.status == 2 and count_test_images(comp) == 0:  # `cv` works without test images
                findings.add_remark("files", "test", "", error.message, error.hint)
            else:
                findings.add_fault("files", "test", "", error)
        else:
            _remark_on_hidden_test(comp, len(files["train"][0]), len(files["test"][0]), findings)
    for split, (images, _) in files.items():
        if turned := find_turned_images(comp, (case for channels in images.values() for case in channels.values())):
            findings.add_remark("exif", split, "", turned_images_message(turned, split), TURNED_IMAGES_HINT)
    ids = [(split, case_id) for split, (images, _) in files.items() for case_id in images]
    cases = [
        measure_case(comp, split, case_id, files[split][0][case_id], files[split][1].get(case_id), findings)
        for split, case_id in progress(iter(ids), len(ids))
    ]
    find_mixed_channels(comp, cases, findings)
    for case in cases:
        case.skipped = (case.split, case.id) in findings.skipped
    if findings.skip and all(case.skipped for case in cases if case.split == "train"):
        findings.add(
            Finding(
                "fault",
                "files",
                "train",
                "",
                "All training cases are skipped (on_bad_case: skip), so none is left.",
                "Correct the files of the cases, or the competition's YAML.",
            )
        )
    assign_groups(comp, cases, findings)
    find_other_metric(comp, findings)
    pairs = compare_cases(comp, cases, findings)
    kept = [case for case in cases if not case.skipped]
    shifts = find_shifts(kept, findings)
    contrasts = rank_contrasts([case for case in kept if case.split == "train"])
    order = {"fault": 0, "remark": 1}
    return Exploration(
        comp,
        cases,
        sorted(findings.all, key=lambda finding: order[finding.severity]),
        pairs,
        contrasts,
        shifts,
        suggest_experiment(comp, cases, contrasts),
    )


# The YAML's metric and the host's


def find_other_metric(comp: Competition, findings: Findings) -> None:
    """Add a remark if the YAML's metric differs from the metric of the host whose profile the YAML names."""
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
            differing.remove("average")  # with a single class, both averages are equal
    if not differing:
        return
    found = " and ".join(f"metric.{key} is {_as_yaml(getattr(comp.metric, key))}" for key in differing)
    text = ", ".join(f"{key}: {_as_yaml(value)}" for key, value in host.items())
    findings.add_remark(
        "metric",
        "",
        "",
        f"{found}, but the host of {comp.submission.profile} scores with another metric.",
        f"To compare scores with the leaderboard, set `metric: {{{text}}}`.",
    )


def _as_yaml(value: object) -> str:
    return "null" if value is None else str(value)
