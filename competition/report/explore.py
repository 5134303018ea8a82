"""The page of an exploration: faults first, then what was measured, then what to try."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from competition.config import MaskfoldError
from competition.data.explore import Exploration, Finding, summary
from competition.data.explore.tables import case_rows, finding_rows
from competition.data.explore.words import many
from competition.report import markup as html
from competition.report.explore_figures import draw_classes, draw_intensities, draw_objects, draw_pairs, draw_sizes
from competition.report.explore_samples import draw_samples
from competition.report.markup import Html, element, facts, figure, joined, paragraph, section, table
from competition.report.page import place_pictures, write_page
from competition.training.checkpoint import write_table, write_whole

MOST_ROWS = 500  # of findings on the page; findings.csv has all


def write_exploration(found: Exploration, output: Path) -> Path:
    """Writes one self-contained page; its pictures, cases.csv, findings.csv and suggested.yaml go to a folder beside it.

    Args:
        found: what was found.
        output: the page, `….html`.

    Returns:
        The page.

    Raises:
        MaskfoldError: it cannot be written.
    """
    folder = place_pictures(output)
    try:
        for old in folder.glob("*.png"):
            old.unlink()  # of an earlier look, whose data may have had what these have not
        write_table(case_rows(found), folder / "cases.csv")
        write_table(finding_rows(found), folder / "findings.csv")
        write_whole(folder / "suggested.yaml", lambda file: file.write(found.snippet.encode()))
        sections = {
            "faults": ("Faults", _findings(found)),
            "sizes": ("Sizes", _sizes(found, folder)),
            "intensities": ("Intensities", _intensities(found, folder)),
            "truth": ("Truth", _truth(found, folder)),
        }
        if found.pairs:
            sections["alike"] = ("Near-duplicates", _alike(found, folder))
        sections["suggested"] = ("Suggested", _suggested(found))
        return write_page(f"{found.comp.name} · data", _head(found), sections, output)
    except OSError as error:
        raise MaskfoldError(
            f"The page {output} cannot be written: {error.strerror or error}.",
            "Name another file with --output, or free some space.",
        ) from error


def _head(found: Exploration) -> Html:
    comp = found.comp
    parts = [element("h1", comp.name), paragraph("What the host gave, before anything is trained", note=True)]
    if found.faults:
        parts.append(
            element(
                "p",
                f"{many(len(found.faults), 'fault')}: cross-validation would stop, or its score would be wrong. "
                "All are listed below; the numbers are of what could be read.",
                class_="warn",
            )
        )
    return joined(
        [
            *parts,
            facts(
                {
                    "cases": f"{len(found.of('train'))} train, {len(found.of('test'))} test ({comp.dimensions}D)",
                    "classes": f"{len(comp.classes)} {comp.labels}" + (", counted by object" if comp.instances else ""),
                    "faults": str(len(found.faults)),
                    "remarks": str(len(found.remarks)),
                    "folder": str(comp.root),
                }
            ),
        ]
    )


def _findings(found: Exploration) -> Html:
    parts: list[Html] = []
    for title, those in (("Faults", found.faults), ("Remarks", found.remarks)):
        parts.append(element("h3", f"{title} ({len(those)})"))
        parts.append(_table_of(those) if those else paragraph("None."))
    parts.append(
        paragraph(
            "A fault stops cross-validation or makes its score wrong. A remark may be meant to be so. All are "
            "in findings.csv.",
            note=True,
        )
    )
    return section("faults", "Faults and remarks", *parts)


def _table_of(those: Sequence[Finding]) -> Html:
    rows = [[one.kind, one.split or "both", one.wrong, one.cure] for one in those[:MOST_ROWS]]
    more = f"The first {MOST_ROWS} of {len(those)}." if len(those) > MOST_ROWS else ""
    return joined(
        [
            table(["kind", "where", "what is wrong", "what to do"], rows, words=(0, 1, 2, 3)),
            paragraph(more, note=True) if more else html.joined([]),
        ]
    )


def _sizes(found: Exploration, folder: Path) -> Html:
    draw_sizes(found, folder / "sizes.png")
    return section(
        "sizes",
        "Cases and sizes",
        table(["", "train", "test"], summary.overview(found), words=(0, 1, 2)),
        paragraph(
            "Least / median / greatest; one number where all are the same. Axes are in the file's own order.", note=True
        ),
        figure(
            folder / "sizes.png",
            "Sizes (and spacings where they differ) of train and test cases.",
            "Sizes of the cases",
        ),
    )


def _intensities(found: Exploration, folder: Path) -> Html:
    parts: list[Html] = []
    if any(case.values for case in found.cases):
        draw_intensities(found, folder / "intensities.png")
        parts.append(
            figure(
                folder / "intensities.png",
                "Mean and spread of each case, in the file's own units.",
                "Intensities of train and test cases",
            )
        )
    if found.shifts:
        rows = [
            [
                one.what,
                f"{one.train:.4g}",
                f"{one.test:.4g}",
                f"{one.distance:.2f}",
                f"{one.chance:.2g}",
                "differs" if one.clear else "",
            ]
            for one in found.shifts
        ]
        parts += [
            element("h3", "Train against test"),
            table(["measure", "median, train", "median, test", "distance", "p", ""], rows, words=(0, 5)),
            paragraph(
                "Two-sample Kolmogorov-Smirnov test, one number a case. A difference is named where the distance is "
                "at least 0.3 and p is below 0.01 divided by the number of measures.",
                note=True,
            ),
        ]
    rows = summary.contrast_rows(found)
    if rows:
        parts += [
            element("h3", "Foreground against background"),
            table(summary.CONTRAST_HEADER, rows),
            paragraph(
                "|d| is the difference of the two means over their common standard deviation (Cohen's d), the "
                "median over the training cases: 0.2 is small, 0.8 large; above 2 a threshold nearly does.",
                note=True,
            ),
        ]
    return section("intensities", "Intensities", *(parts or [paragraph("No image could be read.")]))


def _truth(found: Exploration, folder: Path) -> Html:
    rows = summary.truth_rows(found)
    if not rows:
        return section(
            "truth",
            "Classes and objects",
            table(summary.class_header(found), summary.class_rows(found)),
            paragraph("No truth could be read."),
        )
    samples = draw_samples(found, folder / "samples.png")
    shown = draw_classes(found, folder / "classes.png")
    draw_objects(found, folder / "objects.png")
    few = "" if len(shown) == len(found.comp.classes) else f" (the {len(shown)} largest of {len(found.comp.classes)})"
    what = (
        "as the host numbers them"
        if found.comp.train.rle or "*" in str(found.comp.train.masks)
        else "connected components"
    )
    pictures = (
        [
            figure(
                folder / "samples.png",
                "Training cases from the smallest foreground to the largest, with the borders of "
                "their classes; of a volume the plane with most foreground.",
                "Training cases",
            )
        ]
        if samples
        else []
    )
    return section(
        "truth",
        "Classes and objects",
        table(["", "train"], rows, words=(0, 1)),
        table(summary.class_header(found), summary.class_rows(found), words=(0,)),
        *pictures,
        figure(folder / "classes.png", f"Share of each class in the cases that have it{few}.", "Shares of classes"),
        figure(folder / "objects.png", f"Objects ({what}) in a case, and their sizes.", "Objects"),
    )


def _alike(found: Exploration, folder: Path) -> Html:
    draw_pairs(found, folder / "alike.png")
    return section(
        "alike",
        "Near-duplicates",
        paragraph(
            f"{many(len(found.pairs), 'pair')} {'looks' if len(found.pairs) == 1 else 'look'} the same whatever "
            "their brightness, size and compression. Copies byte for byte are among the faults and remarks only."
        ),
        figure(
            folder / "alike.png",
            "The most alike, two by two, as the thumbnails that were compared.",
            "Pictures that look the same",
        ),
    )


def _suggested(found: Exploration) -> Html:
    if not found.snippet:
        return section(
            "suggested", "Suggested for a first experiment", paragraph("Nothing: no training case could be read.")
        )
    return section(
        "suggested",
        "Suggested for a first experiment",
        paragraph(
            "To be pasted into an experiment's YAML beside competition, model and loss; it is a start, not an "
            "optimum. Also in suggested.yaml."
        ),
        element("pre", found.snippet),
    )
