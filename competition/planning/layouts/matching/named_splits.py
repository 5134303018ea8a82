"""Leave out validation and test cases that lie beside the training cases: `train_1.bmp`, `testA_1.bmp`."""

from __future__ import annotations

from dataclasses import replace

from competition.planning.layout import Layout
from competition.planning.words import TEST_WORDS, TRAIN_WORDS, VALIDATION_WORDS, Split, tokens
from competition.text import format_count


def keep_training_ids(layout: Layout) -> Layout:
    """Return the layout with only the training cases, if all ids begin with a word for a split, and some with `train`.

    A note counts the other cases.
    """
    splits = {case_id: _split(case_id) for case_id in layout.ids}
    kinds = set(splits.values())
    if "train" not in kinds or "" in kinds or len(kinds) < 2:
        return layout
    ids = tuple(case_id for case_id in layout.ids if splits[case_id] == "train")
    others = [case_id for case_id in layout.ids if splits[case_id] != "train"]
    note = f"{format_count(len(others), 'labelled case')} such as {others[0]}, of validation or test by name: not used"
    return replace(
        layout,
        cases=len(ids),
        ids=ids,
        listed=ids,
        mask_files={
            name: {case_id: paths for case_id, paths in files.items() if case_id in ids}
            for name, files in layout.mask_files.items()
        },
        notes=(*layout.notes, note),
        reasons=layout.reasons | {"train.cases": "the images whose names begin with a word for training"},
    )


def _split(case_id: str) -> Split:
    first = next(iter(tokens(case_id)), "")
    if first in TRAIN_WORDS:
        return "train"
    return "test" if first in TEST_WORDS else "val" if first in VALIDATION_WORDS else ""
