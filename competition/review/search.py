"""Search the out-of-fold predictions of a run for wrong labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.context import Context
from competition.data.content.unchanged import load_unchanged_mask
from competition.data.masks import IGNORED
from competition.errors import MaskfoldError
from competition.review.findings import EXCHANGED, EXTRA, SHIFTED, Finding
from competition.review.objects import SliceFinding, find_in_slice
from competition.review.voxels import ClassCounts, Labels, Rule, count_labels, label_problems
from competition.review.whole import MAX_SUSPECTS, MIN_SUSPICION, WholeMask, find_exchanged, find_move
from competition.runs.oof import OofPredictions
from competition.runs.run import Run
from competition.text import format_count

SMALL_SHARE = 0.1  # the score of a finding with this share of the median object's size is halved


@dataclass(frozen=True)
class Review:
    """Hold the result of a search for wrong labels.

    Attributes:
        run: the run.
        findings: the findings, most suspect first.
        cases: number of cases that were compared.
        rules: thresholds and calibration of the search, by fold. Each fold has one rule for each set of exclusive
            labels; see `competition.review.voxels.label_problems`.
    """

    run: Run
    findings: list[Finding]
    cases: int
    rules: dict[int, list[Rule]] = field(default_factory=dict)


def review_run(run: Run, context: Context = Context()) -> Review:
    """Search a run's out-of-fold predictions for wrong labels.

    Each case is read twice: first to compute thresholds and calibration, then to find suspect labels. Only one case is
    in memory at a time.

    Args:
        run: the run; its finished folds are searched.
        context: its log receives messages about the progress.

    Raises:
        MaskfoldError: no fold is finished, or a prediction or a truth is missing, damaged or has changed.
    """
    oof = run.oof()
    if not oof.fold_of:
        raise MaskfoldError(
            f"{run.folder} has no out-of-fold predictions, but a review compares these with the truth.",
            "Name a run with at least one finished fold. `maskfold cv` trains such a run.",
        )
    context.say(f"reading {format_count(len(oof.fold_of), 'out-of-fold prediction')}")
    counts, sizes = _count(oof, context)
    rules = _fit_rules(counts, set(oof.fold_of.values()))
    context.say("comparing the predictions with the truth")
    findings = _search(oof, rules, sizes, context)
    findings.sort(key=lambda finding: (-finding.score, finding.id, finding.slice or 0, finding.object))
    return Review(run, findings, len(oof.fold_of), rules)


Counts = dict[int, list[list[ClassCounts]]]  # counts by fold, set of labels and label


def _count(oof: OofPredictions, context: Context) -> tuple[Counts, list[NDArray[np.float64]]]:
    """Return the voxel counts of each fold, and the median object size of each label.

    Counts and sizes are separate for each set of exclusive labels; see `competition.review.voxels.label_problems`.
    """
    comp, rows = oof.run.exp.competition, oof.rows()
    counts: Counts = {}
    sizes: dict[tuple[int, int], list[int]] = defaultdict(list)
    lengths: list[int] = []
    for case in _progress(list(oof.fold_of), "cases read", context):
        truth = load_unchanged_mask(comp, rows[case])
        fold, lengths = oof.fold_of[case], []
        for number, (names, read, labels) in enumerate(label_problems(oof.read(case), truth, comp)):
            found = count_labels(read, labels, len(names))
            lengths.append(len(names))
            sets = counts.setdefault(fold, [])
            if number == len(sets):
                sets.append(found)
            else:
                sets[number] = [ClassCounts.total(pair) for pair in zip(sets[number], found, strict=True)]
            for label, size in _object_sizes(labels):
                sizes[number, label].append(size)
    medians = [
        np.array([float(np.median(sizes[number, label] or [1])) for label in range(length)])
        for number, length in enumerate(lengths)
    ]
    return counts, medians


def _object_sizes(labels: Labels) -> Iterator[tuple[int, int]]:
    """Yield the label and the size of each connected component of true labels (*spatial)."""
    import cc3d

    clean = np.ascontiguousarray(np.where(labels == IGNORED, 0, labels))
    components = cc3d.connected_components(clean, connectivity=8 if labels.ndim == 2 else 26)
    statistics = np.bincount(components.ravel())
    own = np.zeros(len(statistics), np.int64)
    own[components.ravel()] = clean.ravel()
    yield from zip(own[1:].tolist(), statistics[1:].tolist(), strict=True)


def _fit_rules(counts: Counts, folds: set[int]) -> dict[int, list[Rule]]:
    """Return the thresholds and calibration (rules) for the cases of each fold, fitted on all other folds.

    If there is only one fold, its rules are fitted on this fold.
    """
    rules = {}
    for fold in folds:
        others = [sets for number, sets in counts.items() if number != fold] or [counts[fold]]
        rules[fold] = [
            Rule.fit([ClassCounts.total(label) for label in zip(*sets, strict=True)])
            for sets in zip(*others, strict=True)
        ]
    return rules


@dataclass(frozen=True)
class _Case:
    """Hold the results of the comparison of one case's truth with its out-of-fold prediction.

    Attributes:
        findings: the findings about the case's objects.
        suspicion: total evidence of the case, divided by the number of its pixels that are foreground in the truth or
            the prediction.
        whole: a finding about the whole mask, whose kind is not set yet.
    """

    findings: list[Finding]
    suspicion: float
    whole: Finding


def _search(
    oof: OofPredictions, rules: dict[int, list[Rule]], sizes: list[NDArray[np.float64]], context: Context
) -> list[Finding]:
    comp, rows = oof.run.exp.competition, oof.rows()
    cases: dict[str, _Case] = {}
    masks: dict[str, WholeMask] = {}
    for case in _progress(list(oof.fold_of), "cases compared", context):
        found, mask = _search_case(oof, rows[case], rules[oof.fold_of[case]], sizes, comp)
        cases[case] = found
        if found.suspicion >= MIN_SUSPICION:
            masks[case] = mask
            if len(masks) > 2 * MAX_SUSPECTS:
                masks = {name: masks[name] for name in _most_suspect(cases, masks)[:MAX_SUSPECTS]}
    order = _most_suspect(cases, masks)
    partners = find_exchanged([masks[name] for name in order])
    findings = []
    for case, found in cases.items():
        whole = found.whole
        if case in partners:
            findings.append(_changed(whole, kind=EXCHANGED, partner=partners[case]))
        elif case in masks and (moved := find_move(masks[case])) is not None and any(moved[0]):
            findings.append(_changed(whole, kind=SHIFTED, move=moved[0]))
        else:
            findings += found.findings
    return findings


def _changed(finding: Finding, **changes: object) -> Finding:
    return Finding(**{**finding.__dict__, **changes})


def _most_suspect(cases: dict[str, _Case], masks: dict[str, WholeMask]) -> list[str]:
    return sorted(masks, key=lambda name: -cases[name].suspicion)


def _search_case(
    oof: OofPredictions, row: SimpleNamespace, rules: list[Rule], sizes: list[NDArray[np.float64]], comp: Competition
) -> tuple[_Case, WholeMask]:
    truth = load_unchanged_mask(comp, row)
    findings: list[Finding] = []
    shape = truth.shape[1:]
    all_true, all_predicted = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    evidence_by_slice = np.zeros(shape[-1] if len(shape) == 3 else 1)
    middle = shape[0] // 2, shape[1] // 2
    places: dict[int, tuple[float, tuple[int, int]]] = {}  # the finding with the most evidence in each slice
    pixels = 0
    for number, (names, read, labels) in enumerate(label_problems(oof.read(row.id), truth, comp)):
        predicted, suggested, evidence = rules[number].suspects(read, labels)
        labels = np.where(labels == IGNORED, 0, labels)
        for target, part in ((all_true, labels), (all_predicted, predicted)):
            target[part > 0] = part[part > 0] + number
        pixels += int(np.count_nonzero(suggested))
        tracks = _Tracks()
        planes = _planes(labels, predicted, suggested, evidence)
        for index, (true_plane, seen_plane, suggested_plane, evidence_plane) in enumerate(planes):
            evidence_by_slice[index] += float(evidence_plane.sum(dtype=np.float64))
            found = find_in_slice(true_plane, seen_plane, suggested_plane, evidence_plane, len(names))
            tracks.add(index, found)
            if found:
                places[index] = max((places.get(index, (0.0, middle)), *((one.evidence, one.centre) for one in found)))
        for index, area, best, total, count in tracks.merged():
            median = float(sizes[number][best.suggested if best.label == 0 else best.label])
            findings.append(
                Finding(
                    row.id,
                    best.kind,
                    _score(total, area, median),
                    names[best.label],
                    "" if best.kind == SHIFTED else names[0] if best.kind == EXTRA else names[best.suggested],
                    index if len(shape) == 3 else None,
                    best.object,
                    best.centre,
                    count,
                    move=best.move,
                )
            )
    union = int(np.count_nonzero(all_true | all_predicted))
    evidence_sum = float(evidence_by_slice.sum())
    medians = [float(median) for each in sizes for median in each[1:]]
    most = int(evidence_by_slice.argmax())
    whole = Finding(
        row.id,
        "",
        _score(evidence_sum, union, float(np.median(medians))) if union else 0.0,
        comp.classes[0] if len(comp.classes) == 1 else "",
        slice=most if len(shape) == 3 else None,
        centre=places.get(most, (0.0, middle))[1],
        pixels=pixels,
    )
    case = _Case(findings, evidence_sum / union if union else 0.0, whole)
    return case, WholeMask.reduce(row.id, all_true, all_predicted)


def _score(evidence: float, area: int, median: float) -> float:
    """Return the evidence per pixel of an area, lowered if the area is small compared with the median object."""
    return min(1.0, evidence / area) * area / (area + SMALL_SHARE * median)


def _planes(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the slices of volumes along the last axis; a 2D image is one slice."""
    if arrays[0].ndim == 2:
        yield arrays
        return
    for index in range(arrays[0].shape[-1]):
        yield tuple(np.ascontiguousarray(array[..., index]) for array in arrays)


class _Tracks:
    """Merge the findings about the same object in neighbouring slices of a volume.

    A track is the list of an object's findings, one per slice.
    """

    def __init__(self) -> None:
        self._tracks: list[list[tuple[int, SliceFinding]]] = []

    def add(self, index: int, found: Sequence[SliceFinding]) -> None:
        """Add the findings of slice `index`; slices come in ascending order."""
        open_tracks = [track for track in self._tracks if track[-1][0] == index - 1]
        for finding in found:
            track = next((track for track in open_tracks if _continues(track[-1][1], finding)), None)
            if track is None:
                self._tracks.append([(index, finding)])
            else:
                track.append((index, finding))
                open_tracks.remove(track)

    def merged(self) -> Iterator[tuple[int, int, SliceFinding, float, int]]:
        """Yield (slice, area, finding, evidence, pixels) of each object.

        `slice` is the index of the slice with the most evidence, and `finding` the finding in this slice. Area,
        evidence and number of suspect pixels are totals over the object's findings.
        """
        for track in self._tracks:
            index, best = max(track, key=lambda item: item[1].evidence)
            parts = [part for _, part in track]
            yield (
                index,
                sum(part.area for part in parts),
                best,
                sum(part.evidence for part in parts),
                sum(part.pixels for part in parts),
            )


def _continues(before: SliceFinding, after: SliceFinding) -> bool:
    """Return whether two findings in neighbouring slices, `before` and `after`, are about the same object."""
    if (before.kind, before.label, before.suggested) != (after.kind, after.label, after.suggested):
        return False
    distance = np.hypot(before.centre[0] - after.centre[0], before.centre[1] - after.centre[1])
    return bool(distance <= 2 + np.sqrt(max(before.area, after.area)))


def _progress(cases: list[str], label: str, context: Context) -> Iterator[str]:
    bar = context.bar(label)
    return iter(cases) if bar is None else bar(iter(cases), len(cases))
