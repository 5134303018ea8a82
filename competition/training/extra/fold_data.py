"""Build the additional training data of a fold: images with pseudo-labels, and cases of other competitions.

`competition.training.extra.pseudo_labels` predicts the pseudo-labels. No image may reveal the cases that the fold
validates, so copies of these cases and images of their groups are left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config.axes import competition_axes, permutation
from competition.config.experiment import Experiment, ExtraCasesConfig
from competition.context import Context
from competition.data.cache import PreprocessedCase, cache_key, get_or_build
from competition.data.cases import case_rows
from competition.data.selection import WEIGHT
from competition.errors import MaskfoldError
from competition.records import json_digest
from competition.runs.checkpoint import LAST_CHECKPOINT
from competition.runs.extra_cases import extra_section, mark_near_duplicates, same_competition
from competition.runs.fold import FoldJob
from competition.runs.identity.hashing import drop_keys_without_effect
from competition.runs.run import Run
from competition.text import format_count
from competition.training.distributed import is_main_process
from competition.training.extra.pseudo_labels import find_teachers, pseudo_label_cases
from competition.training.lineage import (
    BY_EXTRA_CASES,
    BY_PSEUDO_LABELS,
    HeldOutCases,
    TrainingCases,
    initial_weights_cases,
    labelled_cases,
    read_lineage_summary,
    write_lineage,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class ExtraTrainingData:
    """Hold the preprocessed cases of additional training data.

    The data consist of several kinds, e.g. images with pseudo-labels and cases of another competition. All cases of a
    kind have the same weight: how often a case is drawn, relative to a labelled case.

    Attributes:
        folders: folders of the preprocessed cases of all kinds.
        kinds: (number of cases, weight) of each kind, in the order of `folders`.
        summary: counts for `lineage.json` and the fold's result.
    """

    folders: list[Path] = field(default_factory=list)
    kinds: list[tuple[int, float]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    def add(self, folders: Sequence[Path], weight: float) -> None:
        """Add one kind of data: the folders of its cases, and their common weight."""
        if folders:
            self.folders += folders
            self.kinds.append((len(folders), weight))


def split_by_weight(run: Run, fold: int, prepared: dict[str, Path]) -> tuple[list[Path], ExtraTrainingData]:
    """Split the labelled training cases of a fold by their weights in `competition.train.weights`.

    Args:
        run: the run.
        fold: number of the fold, see `Run.training_ids`.
        prepared: folder of each preprocessed case, by id.

    Returns:
        The folders of the cases with the weight 1; and the cases with other weights, as one kind of data for each
        weight.
    """
    ids, weighted = run.training_ids(fold), ExtraTrainingData()
    if WEIGHT not in run.cases.columns:
        return [prepared[case] for case in ids], weighted
    weight_of = dict(zip(run.cases["id"], run.cases[WEIGHT].astype(float), strict=True))
    for weight in sorted({weight_of[case] for case in ids} - {1.0}):
        weighted.add([prepared[case] for case in ids if weight_of[case] == weight], weight)
    return [prepared[case] for case in ids if weight_of[case] == 1.0], weighted


def check_extra_data(run: Run, jobs: Sequence[FoldJob]) -> None:
    """Check that each run in `pseudo.from` has a network that may predict pseudo-labels for each fold (a teacher).

    Args:
        run: the run.
        jobs: the folds to check.

    Raises:
        MaskfoldError: all networks of a run in `pseudo.from` were trained on validation cases of a fold. The message
            lists some of these cases.
    """
    for job in jobs if run.exp.pseudo is not None else ():
        find_teachers(run, job)


def prepare_extra_data(
    run: Run, jobs: Sequence[FoldJob], labelled: dict[str, Path], cache: Path, context: Context
) -> None:
    """Preprocess all additional images, and mark images that look like a labelled case.

    Args:
        run: the run; the column `alike` is added to its `extra_tables`.
        jobs: the folds that will be trained.
        labelled: folder of each preprocessed labelled case, by id.
        cache: folder in which preprocessed cases are stored.
        context: context with the trusted packages and the log.

    Raises:
        MaskfoldError: an image cannot be preprocessed, or has another number of channels than the labelled cases; or no
            image would be left for a fold.
    """
    from competition.data.preprocessing import preprocess_cases

    if not run.extra_tables:
        return
    prepared = {}
    for key, table in run.extra_tables.items():
        extra = extra_section(run.exp, key)
        if extra is None:
            prepared[key] = preprocess_cases(
                table, run.exp, cache, progress=context.say, bar=context.bar("additional images preprocessed")
            )
        else:
            prepared[key] = {row.id: prepare_extra_case(row, extra, run.exp, cache) for row in case_rows(table)}
        expected = _channels(labelled)
        for case_id, folder in prepared[key].items():
            channels = PreprocessedCase.open(folder).image.shape[0]
            if channels != expected:
                raise MaskfoldError(
                    f"{_section_name(key, run.exp)}: the image {case_id} has {format_count(channels, 'channel')}, "
                    f"expected {expected}, as in the labelled cases.",
                    "Remove the image. For 2D images, you can also set prepare.channels to grey or rgb; for "
                    "volumes, to a list of channels that all images have.",
                )
    copies = mark_near_duplicates(run, labelled, prepared)
    for key, table in run.extra_tables.items():
        line = f"{_section_name(key, run.exp)}: {format_count(len(table), 'additional image')}"
        if labels := table.attrs.get("labelled", 0):
            line += f"; not used, because they have labels: {format_count(labels, 'image')}"
        if copies[key]:
            line += (
                f"; similar to a labelled case, and not used in the fold that validates this case: "
                f"{format_count(copies[key], 'image')}"
            )
        context.say(line)
        for job in jobs:
            exclude_leaks(run, table, job.fold, key)


def build_extra_data(job: FoldJob, run: Run, context: Context) -> ExtraTrainingData:
    """Build the additional training data of a fold, and write the fold's `lineage.json`.

    Images and pseudo-labels that the cache already contains are not prepared or predicted again.

    Args:
        job: the fold.
        run: the run of the experiment.
        context: context with the trusted packages and the log.

    Raises:
        MaskfoldError: a run in `pseudo.from` has no teacher for the fold; the teachers have changed since the fold
            started; or the teachers predict no image with enough confidence.
    """
    exp, extra_data, fold = run.exp, ExtraTrainingData(), job.fold
    if not run.extra_tables and exp.initial_run is None:
        return extra_data
    resumed, recorded = (job.folder / LAST_CHECKPOINT).exists(), read_lineage_summary(job.folder)
    if not run.extra_tables and recorded is not None:
        return extra_data
    sources = [labelled_cases(run, fold), *initial_weights_cases(run, fold, context)]
    for key, table in run.extra_tables.items():
        extra, (rows, left_out) = extra_section(exp, key), exclude_leaks(run, table, fold, key)
        if extra is not None:
            extra_data.add([prepare_extra_case(row, extra, exp, job.cache) for row in case_rows(rows)], extra.weight)
            sources.append(TrainingCases.from_table(BY_EXTRA_CASES, run, rows, extra.weight, extra.competition))
            extra_data.summary[key.removeprefix("besides_")] = {
                "cases": len(rows),
                "weight": extra.weight,
                "left_out": left_out,
            }
            continue
        teachers = find_teachers(run, job)
        teacher_names = [name for teacher in teachers for name in teacher.names]
        digests = [digest for teacher in teachers for digest in teacher.digests()]
        summary: dict[str, Any] = {
            "teachers": [
                {"member": name, "sha256": digest} for name, digest in zip(teacher_names, digests, strict=True)
            ]
        }
        if resumed and recorded is not None and recorded.get("pseudo", {}).get("teachers") != summary["teachers"]:
            before = {item.get("member"): item.get("sha256") for item in recorded.get("pseudo", {}).get("teachers", [])}
            changed = [
                name for name, digest in zip(teacher_names, digests, strict=True) if before.pop(name, None) != digest
            ]
            raise MaskfoldError(
                f"The teachers of {job.folder.name} have changed since this fold was started: the weights of "
                f"{', '.join([*changed, *map(str, before)]) or 'its teachers'} differ from those at the start.",
                f"To train this fold from the beginning, delete {job.folder}. Or start another run with --new.",
            )
        labelled_folders, confidence = pseudo_label_cases(rows, teachers, exp, job, context)
        weight = exp.pseudo.weight if exp.pseudo is not None else 0.0
        left_out |= confidence.pop("left_out")
        summary |= {"cases": len(labelled_folders), "weight": weight, "left_out": left_out, **confidence}
        extra_data.add(list(labelled_folders.values()), weight)
        sources.append(
            TrainingCases.from_table(BY_PSEUDO_LABELS, run, rows[rows["id"].isin(set(labelled_folders))], weight)
        )
        sources += [source for teacher in teachers for source in teacher.sources]
        extra_data.summary["pseudo"] = summary
        context.say(
            f"{', '.join(teacher_names)} made confident pseudo-labels for {len(labelled_folders)} of "
            f"{format_count(len(rows), 'image')}; the loss ignores the uncertain voxels of these images "
            f"({100 * summary['ignored']:.1f} %)"
        )
    if is_main_process():
        write_lineage(job.folder, sources, extra_data.summary)
    return extra_data


def exclude_leaks(run: Run, table: pd.DataFrame, fold: int, key: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """Remove additional images that a fold must not train on, because they would reveal its validation cases.

    These are images that are the same as a validation case or look like one, and images that belong to the group of a
    validation case.

    Args:
        run: the run.
        table: one of the run's `extra_tables`, with the column `alike` of `mark_near_duplicates`.
        fold: number of the fold.
        key: name of the table.

    Returns:
        The remaining rows, and the number of removed images by reason: `same`, `group` or `alike`.

    Raises:
        MaskfoldError: no image is left.
    """
    protected, extra = HeldOutCases(run, fold), extra_section(run.exp, key)
    comp = run.exp.competition
    same_ids = extra is None or same_competition(extra.competition, comp.name, str(comp.root))
    are_test_images = extra is None and (run.exp.pseudo is None or run.exp.pseudo.images is None)
    # Without a group rule, the group of an image is its id. A test image may have the id of a labelled case by chance.
    same_groups = comp.group is not None and (extra is None or extra.competition.group is not None)
    same_groups |= same_ids and not are_test_images
    reasons = []
    for row in case_rows(table):
        alike = set(json.loads(getattr(row, "alike", "[]")))
        if row.image_hash in protected.hashes or (extra is not None and same_ids and row.id in protected.ids):
            reasons.append("same")
        elif same_groups and row.group in protected.units:
            reasons.append("group")
        else:
            reasons.append("alike" if alike & protected.ids else "")
    kept = table[[not reason for reason in reasons]]
    if kept.empty:
        raise MaskfoldError(
            f"{_section_name(key, run.exp)}: no image is left for fold {fold}, because each image is a copy of a case "
            "that this fold validates, or belongs to the group of such a case.",
            f"Name other images in the section `{'pseudo' if extra is None else 'extra'}` of the YAML, or remove "
            "this section.",
        )
    return kept, {reason: count for reason, count in Counter(reasons).items() if reason}


def _section_name(key: str, exp: Experiment) -> str:
    """Return the section of the YAML to which a table of additional images belongs, for messages."""
    extra = extra_section(exp, key)
    return "pseudo" if extra is None else f"extra ({extra.competition.name})"


def _channels(prepared: dict[str, Path]) -> int:
    return int(PreprocessedCase.open(next(iter(prepared.values()))).image.shape[0])


# Cases of other competitions


def prepare_extra_case(row: Any, extra: ExtraCasesConfig, exp: Experiment, cache: Path) -> Path:
    """Preprocess one case of another competition with the experiment's settings, classes and order of axes.

    Args:
        row: row of the case in the case table of the other competition.
        extra: the entry of `extra` in the YAML for the other competition.
        exp: the experiment that trains on the image.
        cache: folder of the preprocessed cases.

    Returns:
        The folder for `PreprocessedCase.open`.

    Raises:
        MaskfoldError: the case cannot be read or prepared.
    """
    from competition.data.content.unchanged import unchanged_files
    from competition.data.geometry import Geometry
    from competition.data.masks import load_instances, load_relabelled_mask
    from competition.data.preprocessing import write_image, write_mask
    from competition.data.readers import load_image, row_axes, transpose_image

    source_comp, comp = extra.competition, exp.competition
    mapping = extra.class_mapping(comp.classes)
    source_keys = source_comp.model_dump(
        mode="json", exclude={"root", "test", "submission", "metric", "group", "stratum", "name"}
    )
    drop_keys_without_effect(source_keys)
    axes = permutation(row_axes(source_comp, row), competition_axes(comp))
    parts = ["extra", 1, cache_key(row, exp), source_keys, mapping, *([] if axes is None else [axes])]
    if exp.prepare.boundary is not None and set(source_comp.classes) - set(mapping):
        parts.append("objects of the mapped classes")  # earlier versions stored the boundary of all objects
    key = json_digest(parts)[:32]

    def build(folder: Path) -> dict[str, Any]:
        with unchanged_files(source_comp, row, fresh=True):
            image = transpose_image(load_image(source_comp, row), axes)
            record = write_image(folder, image, exp, str(row.id))
            objects = load_instances(source_comp, row) if exp.prepare.object_key else None
            mask = load_relabelled_mask(source_comp, row, comp, mapping)
            if objects is not None:  # objects of classes that become background have no boundary
                objects = np.where(mask[0] == 0, 0, objects)
        if axes is not None:
            objects = None if objects is None else objects.transpose(axes)
            mask = mask.transpose(0, *(axis + 1 for axis in axes))
        write_mask(folder, mask, Geometry.from_dict(record["geometry"]), exp, str(row.id), objects)
        return record

    return get_or_build(cache, key, build)
