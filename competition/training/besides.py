"""What a run learns from besides its labelled cases, as case tables: images for pseudo-labels, other competitions' cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config import Competition, Experiment, MaskfoldError
from competition.config.competition import Test

if TYPE_CHECKING:
    import pandas as pd

    from competition.training.runs import CvRun

PSEUDO = "besides_pseudo"  # table names; `besides_extra_0`, … are the other competitions'


def settled(exp: Experiment) -> Experiment:
    """The experiment with each teacher of `pseudo.from` by its run's folder, however the user named it.

    Raises:
        MaskfoldError: a teacher is no finished run.
    """
    from competition.training.find import find_run

    if exp.pseudo is None:
        return exp
    folders = []
    for word in exp.pseudo.words:
        try:
            folders.append(str(find_run(word, trust=None).folder))  # type: ignore[arg-type]
        except MaskfoldError as error:
            raise MaskfoldError(f"pseudo.from: {error.wrong}", error.cure, status=error.status) from error
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise MaskfoldError(f"pseudo.from names the run {twice[0]} twice.", "Name it once.", status=2)
    teachers = folders[0] if isinstance(exp.pseudo.teachers, str) else folders
    return exp.model_copy(update={"pseudo": exp.pseudo.model_copy(update={"teachers": teachers})})


def besides(exp: Experiment, cases: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables, by the names of their files in the run's folder.

    Args:
        exp: the experiment.
        cases: the labelled cases.

    Raises:
        MaskfoldError: a pattern finds nothing, a case is bad, or every image has a label already.
    """
    from competition.data.table import case_table

    tables = {PSEUDO: _unlabelled(exp, cases)} if exp.pseudo is not None else {}
    for number, extra in enumerate(exp.extras):
        tables[f"besides_extra_{number}"] = case_table(extra.competition, "train")
    return tables


def hash_of(cases: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> str:
    """The data's hash; without other tables the one that it always was."""
    from competition.data.hashes import joined
    from competition.data.table import data_hash

    own = data_hash(cases)
    return (
        own
        if not tables
        else joined(word.encode() for name, table in sorted(tables.items()) for word in (own, name, data_hash(table)))
    )


def name_besides(plain: dict[str, Any]) -> None:
    """Bring what came after the first runs to what their hash shall know of it: nothing where it is off, and no places."""
    plain["competition"]["train"].pop("cases", None)  # the data's own hash knows which cases there are
    for key in ("pseudo", "extra"):
        if plain.get(key) is None:
            plain.pop(key, None)
    if (pseudo := plain.get("pseudo")) is not None:  # a run by its name, wherever it lies
        words = pseudo["from"] if isinstance(pseudo["from"], list) else [pseudo["from"]]
        pseudo["from"] = ["/".join(Path(word).resolve().parts[-2:]) for word in words]
    extras = plain.get("extra") or []
    for extra in extras if isinstance(extras, list) else [extras]:
        for key in ("root", "test", "submission", "metric"):
            extra["competition"].pop(key, None)
        extra["competition"]["train"].pop("cases", None)


def find_copies(run: CvRun, labelled: dict[str, Path], others: dict[str, dict[str, Path]]) -> dict[str, int]:
    """Note in the tables' column `alike` (a JSON list of ids) which labelled cases an image is nearly the same as.

    Pictures are compared as `maskfold explore` does, by small copies of what was prepared: saved anew, brighter, at
    another size. Turned and mirrored copies are not found.

    Args:
        run: its tables of `besides` get the column.
        labelled: folder of each prepared labelled case, by id.
        others: the same for each of the tables.

    Returns:
        How many images of each table are like a labelled one.
    """
    from competition.data.explore.thumbnails import near_duplicates, thumbnail
    from competition.data.prepare import PreparedCase

    def small(folder: Path) -> Any:
        return thumbnail(np.asarray(PreparedCase.open(folder).image, np.float32))

    names = list(labelled)
    own = [small(labelled[name]) for name in names]
    found = {}
    for key, table in run.besides.items():
        ids = [case_id for case_id in table["id"] if case_id in others[key]]
        alike: dict[str, list[str]] = {}
        for pair in near_duplicates([*own, *(small(others[key][case_id]) for case_id in ids)]):
            if pair.one < len(names) <= pair.other:
                alike.setdefault(ids[pair.other - len(names)], []).append(names[pair.one])
        table["alike"] = [json.dumps(sorted(alike.get(case_id, []))) for case_id in table["id"]]
        found[key] = len(alike)
    return found


def _unlabelled(exp: Experiment, cases: pd.DataFrame) -> pd.DataFrame:
    """The images for pseudo-labels: those that have no label here; `group` is theirs where the rule knows it."""
    from competition.data import groups
    from competition.data.table import case_table

    comp, pseudo = exp.competition, exp.pseudo
    assert pseudo is not None
    images = pseudo.images if pseudo.images is not None else (comp.test.images if comp.test is not None else None)
    if images is None:
        raise MaskfoldError(
            f"pseudo.images is not set, and the competition {comp.name} has no test images.",
            "Say where the images without labels are, e.g. pseudo.images='unlabelled/{id}.nii.gz'.",
            status=2,
        )
    try:
        table = case_table(comp.model_copy(update={"test": Test(images=images)}), "test")
    except MaskfoldError as error:
        key = "pseudo.images" if pseudo.images is not None else "test.images"
        raise MaskfoldError(
            error.wrong.replace("test.images", key), error.cure.replace("test.images", key), status=error.status
        ) from error
    # The host may number test cases like training cases; in a folder that the user named, a name is a name.
    labelled = table["image_hash"].isin(set(cases["image_hash"]))
    if pseudo.images is not None:
        labelled |= table["id"].isin(set(cases["id"]))
    kept = table[~labelled].reset_index(drop=True)
    if kept.empty:
        raise MaskfoldError(
            f"All {len(table)} images for pseudo-labels have labels already.",
            "Name others with pseudo.images, or fewer labelled cases with competition.train.cases.",
            status=2,
        )
    if comp.group is not None:
        known = groups.known(comp, kept["id"].tolist())
        kept["group"] = [known.get(case_id, case_id) for case_id in kept["id"]]
    kept.attrs["labelled"] = int(labelled.sum())
    return kept


def same_competition(one: Competition, name: str, root: str) -> bool:
    """Whether ids mean the same: by the competition's name, or by the folder of its data."""
    return one.name == name or Path(one.root).resolve() == Path(root).resolve()
