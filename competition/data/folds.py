"""Which fold validates which case. A unit (a group, and cases with the same image) is never torn apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.config.experiment import Folds
from competition.data.duplicates import conflicting, duplicates, units
from competition.data.fold_file import fold_file, read_folds, write_folds
from competition.data.leaks import check_leaks

if TYPE_CHECKING:
    import pandas

__all__ = ["check_leaks", "read_folds", "split", "write_folds"]

TRAIN_ONLY, HELD_OUT = -1, -2  # fold numbers of cases that no fold validates


def split(table: pandas.DataFrame, comp: Competition, folds: Folds, seed: int) -> pandas.DataFrame:
    """Splits the training cases.

    The cases are sorted by id first, so that the result depends on their ids, groups, images and the seed alone. Where
    `competition.group` is given, every scheme keeps its groups together.

    Args:
        table: the case table of the training cases.
        comp: what the host gave.
        folds: the experiment's `folds`.
        seed: of the shuffle.

    Returns:
        Columns id, fold and group (the unit that was kept together), sorted by id. A holdout has the validation cases
        in fold 0, the training cases in -1, the held-out third share in -2. ``attrs["duplicates"]`` lists the ids
        that share an image, ``attrs["conflicting"]`` those of them whose masks differ.

    Raises:
        MaskfoldError: too few cases or groups, no groups where the scheme wants them, a bad fold file, or a leak
            (status 2).
    """
    import pandas

    cases = table.assign(id=table["id"].astype(str)).sort_values("id", kind="stable").reset_index(drop=True)
    if folds.scheme in ("group", "stratified_group") and comp.group is None:
        raise MaskfoldError(f"folds.scheme {folds.scheme} needs groups, and competition.group is not set.",
                            "Set competition.group to a regular expression on the id, or to `file.csv:column`.", status=2)
    together = units(cases)
    if folds.scheme == "file":
        numbers = fold_file(Path(str(folds.file)), cases["id"].tolist())
    elif folds.scheme == "holdout":
        numbers = _holdout(together, folds.shares or [0.8, 0.2], seed)
    elif folds.scheme in ("kfold", "group"):
        numbers = _kfold(together, folds.k, seed)
    else:
        from competition.data.strata import strata

        numbers = _stratified(together, strata(cases, comp).tolist(), folds.k, seed)
    result = pandas.DataFrame({"id": cases["id"], "fold": numbers, "group": together})
    check_leaks(cases, result)
    result.attrs.update(duplicates=duplicates(cases), conflicting=conflicting(cases))
    return result


def _kfold(together: list[str], k: int, seed: int) -> list[int]:
    """scikit-learn's KFold over units, which is its GroupKFold with shuffle where a unit has several cases."""
    from sklearn.model_selection import KFold

    names = _enough(together, k)
    fold_of: dict[str, int] = {}
    for number, (_, validated) in enumerate(KFold(k, shuffle=True, random_state=_state(seed)).split(names)):
        fold_of.update((names[index], number) for index in validated)
    return [fold_of[name] for name in together]


def _stratified(together: list[str], strata: list[str], k: int, seed: int) -> list[int]:
    """scikit-learn's StratifiedKFold, or StratifiedGroupKFold where a unit has several cases."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    names = _enough(together, k)
    alone = len(names) == len(together)
    splitter = (StratifiedKFold if alone else StratifiedGroupKFold)(k, shuffle=True, random_state=_state(seed))
    folds = splitter.split(together, merge_rare(strata, k), None if alone else together)
    numbers = [0] * len(together)
    for number, (_, validated) in enumerate(folds):
        if len(validated) == 0:
            raise MaskfoldError(f"Fold {number} of {k} would be empty: the groups are too uneven.",
                                "Lower folds.k, or use folds.scheme group.", status=2)
        for index in validated:
            numbers[index] = number
    return numbers


def merge_rare(strata: Sequence[str], k: int) -> list[str]:
    """Puts strata of fewer than k cases, which k folds cannot share, together; with the smallest other if need be.

    Args:
        strata: of each case; at least k.
        k: number of folds.

    Returns:
        Strata of at least k cases each.
    """
    counts = Counter(strata)
    rare = {name for name, count in counts.items() if count < k}
    if rare and sum(counts[name] for name in rare) < k:
        rare.add(min((name for name in counts if name not in rare), key=lambda name: (counts[name], name)))
    return ["rare" if name in rare else f"={name}" for name in strata]


def _holdout(together: list[str], shares: list[float], seed: int) -> list[int]:
    """Shares of the units: validation in fold 0, training in -1, held out in -2; at least one unit of each."""
    import numpy as np

    if shares[0] == 0 or shares[1] == 0:
        raise MaskfoldError("folds.shares leave no cases to train on or to validate.",
                            "Give both a share above 0, such as [0.8, 0.2].", status=2)
    names = sorted(set(together))
    wanted = [max(1, round(share * len(names))) if share else 0 for share in shares[1:]]
    if sum(wanted) >= len(names):
        raise MaskfoldError(f"folds.shares {shares} cannot be cut from {_counted(together)}.",
                            "Add cases, or give two shares.", status=2)
    order = np.random.RandomState(_state(seed)).permutation(len(names))
    fold_of = dict.fromkeys(names, TRAIN_ONLY)
    for place, index in enumerate(order[: sum(wanted)]):
        fold_of[names[index]] = 0 if place < wanted[0] else HELD_OUT
    return [fold_of[name] for name in together]


def _enough(together: list[str], k: int) -> list[str]:
    """The units, sorted; at least k."""
    names = sorted(set(together))
    if len(names) < k:
        raise MaskfoldError(f"folds.k is {k}, and there are {_counted(together)}.",
                            f"Set folds.k={max(len(names), 2)}, or add cases.", status=2)
    return names


def _counted(together: list[str]) -> str:
    kept = len(set(together))
    cases = f"{len(together)} case{'s' if len(together) != 1 else ''}"
    return cases if kept == len(together) else f"{cases} in {kept} group{'s' if kept != 1 else ''} that stay together"


def _state(seed: int) -> int:
    """A seed in the range that scikit-learn takes."""
    return seed % 2**32
