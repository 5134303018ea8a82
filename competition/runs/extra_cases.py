"""Build the case tables of additional training data: images for pseudo-labels, and cases of other competitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config.competition import Competition, TestFiles
from competition.config.experiment import Experiment, ExtraCasesConfig
from competition.errors import MaskfoldError

if TYPE_CHECKING:
    import pandas as pd

    from competition.runs.run import Run

# Name, without `.csv`, of the table of images for pseudo-labels. The tables of other competitions have the names
# `besides_extra_0`, `besides_extra_1` and so on.
PSEUDO_TABLE = "besides_pseudo"


def extra_case_tables(exp: Experiment, cases: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the case tables of the additional data, by their file names (without `.csv`) in the run's folder.

    Args:
        exp: the experiment.
        cases: the case table of the labelled cases.

    Raises:
        MaskfoldError: a pattern matches no file, a case cannot be read, or every image for pseudo-labels is already
            labelled.
    """
    from competition.data.cases import case_table

    tables = {PSEUDO_TABLE: _unlabelled(exp, cases)} if exp.pseudo is not None else {}
    for number, extra in enumerate(exp.extras):
        tables[f"besides_extra_{number}"] = case_table(extra.competition, "train")
    return tables


def _unlabelled(exp: Experiment, cases: pd.DataFrame) -> pd.DataFrame:
    """Return the case table of the unlabelled images that get pseudo-labels.

    If the competition has groups, the table has the column group. An image whose id does not match the group rule forms
    a group of its own. The table's `attrs["labelled"]` is the number of images that were left out because they have
    labels.
    """
    from competition.data.cases import case_table
    from competition.data.splits import known_groups

    comp, pseudo = exp.competition, exp.pseudo
    assert pseudo is not None
    test = TestFiles(images=pseudo.images) if pseudo.images is not None else comp.test
    if test is None:
        raise MaskfoldError(
            f"pseudo.images is not set, and the competition {comp.name} has no test images, so there are no "
            "images for pseudo-labels.",
            "Set the pattern of the unlabelled images, e.g. pseudo.images='unlabelled/{id}.nii.gz'.",
            status=2,
        )
    try:
        table = case_table(comp.model_copy(update={"test": test}), "test")
    except MaskfoldError as error:
        key = "pseudo.images" if pseudo.images is not None else "test.images"
        raise MaskfoldError(
            error.message.replace("test.images", key), error.hint.replace("test.images", key), status=error.status
        ) from error
    # In a host's data, a test case and a training case may have the same id by chance. In `pseudo.images`, the same id
    # means the same case.
    labelled = table["image_hash"].isin(set(cases["image_hash"]))
    if pseudo.images is not None:
        labelled |= table["id"].isin(set(cases["id"]))
    kept = table[~labelled].reset_index(drop=True)
    if kept.empty:
        raise MaskfoldError(
            f"All {len(table)} images for pseudo-labels have labels already, so no image would get a pseudo-label.",
            "Name other images with pseudo.images, or list fewer cases in competition.train.cases.",
            status=2,
        )
    if comp.group is not None:
        known = known_groups(comp, kept["id"].tolist())
        kept["group"] = [known.get(case_id, case_id) for case_id in kept["id"]]
    kept.attrs["labelled"] = int(labelled.sum())
    return kept


def combined_data_hash(cases: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> str:
    """Return the hash of all data of a run: the labelled cases and the additional tables.

    Without additional tables, the result is `competition.data.cases.data_hash` of the labelled cases.

    Args:
        cases: the table of labelled cases.
        tables: the tables of additional data by name, see `extra_case_tables`.
    """
    from competition.data.cases import data_hash
    from competition.data.image_types import combined_digest

    cases_hash = data_hash(cases)
    if not tables:
        return cases_hash
    parts = [part for name, table in sorted(tables.items()) for part in (cases_hash, name, data_hash(table))]
    return combined_digest(part.encode() for part in parts)


def mark_near_duplicates(run: Run, labelled: dict[str, Path], others: dict[str, dict[str, Path]]) -> dict[str, int]:
    """Add the column `alike` to the additional tables: a JSON list of the labelled cases that each image resembles.

    The function compares thumbnails of the preprocessed images, as `maskfold explore` does. This finds copies that were
    saved again, brightened or resized, but not copies that were rotated or mirrored.

    Args:
        run: the run; the tables in its `extra_tables` are changed in place.
        labelled: folders of the preprocessed labelled cases, by id.
        others: folders of the preprocessed additional images, by name of the table and then by id.

    Returns:
        The number of images that resemble a labelled image, by name of the table.
    """
    from competition.data.cache import PreprocessedCase
    from competition.data.duplicates import find_near_duplicates, make_thumbnail

    def load_thumbnail(folder: Path) -> Any:
        return make_thumbnail(np.asarray(PreprocessedCase.open(folder).image, np.float32))

    labelled_ids = list(labelled)
    labelled_thumbnails = [load_thumbnail(labelled[case_id]) for case_id in labelled_ids]
    counts = {}
    for key, table in run.extra_tables.items():
        ids = [case_id for case_id in table["id"] if case_id in others[key]]
        alike: dict[str, list[str]] = {}
        thumbnails = [load_thumbnail(others[key][case_id]) for case_id in ids]
        for pair in find_near_duplicates([*labelled_thumbnails, *thumbnails]):
            if pair.first < len(labelled_ids) <= pair.second:
                alike.setdefault(ids[pair.second - len(labelled_ids)], []).append(labelled_ids[pair.first])
        table["alike"] = [json.dumps(sorted(alike.get(case_id, []))) for case_id in table["id"]]
        counts[key] = len(alike)
    return counts


def extra_section(exp: Experiment, table: str) -> ExtraCasesConfig | None:
    """Return the entry of `extra` in the YAML to which a table belongs; None for the table of images for pseudo-labels.

    Args:
        exp: the experiment.
        table: name of the table, e.g. `besides_extra_0`.
    """
    return None if table == PSEUDO_TABLE else exp.extras[int(table.rpartition("_")[2])]


def same_competition(comp: Competition, name: str, root: str) -> bool:
    """Return whether a competition has a given name or data folder; if so, equal case ids mean the same case."""
    return comp.name == name or Path(comp.root).resolve() == Path(root).resolve()
