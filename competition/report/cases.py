"""The best, the middle and the worst cases as pictures."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from competition.data.table import load_image, load_mask
from competition.inference.masks import to_masks
from competition.report import markup as html
from competition.report.markup import Html, element, section
from competition.report.results import Results
from competition.scoring.pictures import case_picture
from competition.training.oof import OutOfFold

COUNTS = {"best": 2, "median": 2, "worst": 3}
MOST_NAMED = 12  # classes in a caption


@dataclass(frozen=True)
class Chosen:
    """A case worth a look."""

    case: str
    kind: str  # best, median or worst
    rank: int  # 1 is the best of all
    score: float  # the competition's metric, mean over the classes that the case has


def cases_section(results: Results, oof: OutOfFold, folder: Path) -> Html:
    """Pictures image · truth · prediction."""
    comp = results.run.exp.competition
    for old in folder.glob("case_*_*.png"):  # of an earlier page: other cases may be the best now
        if re.fullmatch(r"case_\d+_(best|median|worst)\.png", old.name):
            old.unlink()
    found, of = ranked(results)
    parts: list[Html] = []
    by_id = {row.id: row for row in oof.cases.itertuples(index=False)}
    for place, one in enumerate(choose(found), 1):
        path = folder / f"case_{place}_{one.kind}.png"
        rows = results.rows()
        lines = rows[rows["id"] == one.case]
        known = dict(zip(lines["class"], lines["dice"], strict=True))
        _draw(path, by_id[one.case], oof, comp, known, one, of)
        shown = [f"{name} {value:.4f}" for name, value in known.items() if not math.isnan(value)]
        dice = ", ".join(shown[:MOST_NAMED]) + (" …" if len(shown) > MOST_NAMED else "")
        parts.append(
            html.figure(
                path,
                html.joined(
                    [
                        element("strong", f"{one.kind}, number {one.rank} of {of}"),
                        f" · case {one.case} · fold {oof.fold_of[one.case]} · {comp.metric.name} {one.score:.4f} · Dice: {dice}",
                    ]
                ),
                f"{one.kind} case {one.case}",
            )
        )
    if not parts:
        parts.append(html.paragraph("No case has any class, in truth or prediction."))
    left = len(oof.fold_of) - of
    note = (
        f"Cases are ordered by {comp.metric.name}, the mean over the classes that a case has in truth or "
        "prediction. Masks are as they were scored, before post-processing."
    )
    if left:
        note += f" {left} of {len(oof.fold_of)} cases have no class, in truth or prediction, and are left out."
    return section("cases", "Best, median and worst cases", html.paragraph(note, note=True), *parts)


def ranked(results: Results) -> tuple[list[tuple[str, float]], int]:
    """Cases and scores from the best to the worst, of those that have a class in truth or prediction; their number.

    An empty case found empty has the best score there is, and nothing to look at.
    """
    rows = results.rows()
    known = rows[rows["dice"].notna()]
    means = known.groupby("id")["score"].mean().dropna().sort_values(ascending=False, kind="stable")
    return [(str(case), float(score)) for case, score in means.items()], len(means)


def choose(found: list[tuple[str, float]]) -> list[Chosen]:
    """Two of the best, two in the middle and three of the worst, the worst last; one of each of too few cases."""
    count = len(found)
    counts = COUNTS if count >= sum(COUNTS.values()) else dict.fromkeys(COUNTS, 1)
    middle = (count - counts["median"]) // 2
    places = {
        "best": range(counts["best"]),
        "median": range(middle, middle + counts["median"]),
        "worst": range(count - counts["worst"], count),
    }
    kinds: dict[int, str] = {}
    for kind in ("best", "worst", "median"):  # of one or two cases, the ends come first
        for place in places[kind]:
            if 0 <= place < count:
                kinds.setdefault(place, kind)
    return [Chosen(found[place][0], kinds[place], place + 1, found[place][1]) for place in sorted(kinds)]


def _draw(path: Path, row: Any, oof: OutOfFold, comp: Any, dice: dict[str, float], one: Chosen, of: int) -> None:
    masks = to_masks(oof.read(row.id), comp)
    image = load_image(comp, row)
    case_picture(
        path,
        image.array,
        load_mask(comp, row),
        masks,
        comp,
        f"{row.id} · {one.kind}, {one.rank} of {of}",
        spacing=json.loads(row.spacing),
        dice=dice,
        affine=image.affine,
    )
