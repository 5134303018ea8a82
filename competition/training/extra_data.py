"""Build the additional training data of a fold: images with pseudo-labels, and cases of other competitions.

Pseudo-labels are predictions of teachers, which are networks of other runs. A network may be a teacher of a fold only
if it was not trained on the cases that this fold validates.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config.axes import competition_axes, permutation
from competition.config.competition import drop_keys_without_effect
from competition.config.experiment import Experiment, ExtraCasesConfig
from competition.context import Context
from competition.data.cache import RECORD_FILE, PreprocessedCase, cache_key, get_or_build
from competition.data.cases import case_rows
from competition.data.selection import WEIGHT
from competition.errors import MaskfoldError
from competition.io import json_digest, sha256_of_file
from competition.runs.cascade.first_stage import refuse_first_stage
from competition.runs.checkpoint import LAST_CHECKPOINT
from competition.runs.extra_cases import extra_section, mark_near_duplicates, same_competition
from competition.runs.fold import FoldJob
from competition.runs.run import FOLDS_FILE, Run, load_run
from competition.text import format_count
from competition.training.distributed import is_main_process, make_fabric
from competition.training.lineage import (
    BY_EXTRA_CASES,
    BY_PSEUDO_LABELS,
    HeldOutCases,
    Leak,
    TrainingCases,
    cases_via,
    find_leaks,
    format_leaks,
    initial_weights_cases,
    labelled_cases,
    member_name,
    read_lineage_summary,
    training_cases,
    write_lineage,
)

if TYPE_CHECKING:
    import pandas as pd


# The data of a fold


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
    """Split the labelled training cases of a fold by their weights in `train.weights`.

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
    """Check that each run in `pseudo.from` has a teacher for each fold.

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
    """Preprocess all additional images, and mark images that are copies of labelled cases.

    Args:
        run: the run; the column `alike` is added to its `extra_tables`.
        jobs: the folds that will be trained.
        labelled: folder of each preprocessed labelled case, by id.
        cache: folder in which preprocessed cases are stored.
        context: context with the trusted packages and the log.

    Raises:
        MaskfoldError: an image cannot be preprocessed, or no image would be left for a fold.
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
                    f"The image {case_id} of {_data_name(key, run.exp)} has {format_count(channels, 'channel')}, "
                    f"expected {expected}, as in the labelled cases.",
                    "Remove the image. For 2D images, you can also set prepare.channels to grey or rgb; for "
                    "volumes, to a list of channels that all images have.",
                )
    copies = mark_near_duplicates(run, labelled, prepared)
    for key, table in run.extra_tables.items():
        line = f"{_data_name(key, run.exp)}: {format_count(len(table), 'image')}"
        if labels := table.attrs.get("labelled", 0):
            line += f", {labels} more have labels and are not used"
        if copies[key]:
            line += f"; {copies[key]} resemble a labelled case, so the fold that validates this case does not use them"
        context.say(line)
        for job in jobs:
            exclude_leaks(run, table, job.fold, key)


def build_extra_data(job: FoldJob, run: Run, context: Context) -> ExtraTrainingData:
    """Build the fold's additional training data from the cache, and write its `lineage.json`.

    Args:
        job: the fold.
        run: the run of the experiment.
        context: context with the trusted packages and the log.

    Raises:
        MaskfoldError: a run in `pseudo.from` has no teacher for the fold; the teachers have changed since the fold
            started; or they have no confident prediction for any image.
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
            raise MaskfoldError(
                f"The teachers of {job.folder.name} have changed since this fold was started: the weights of "
                f"{', '.join(teachers[0].names)} differ from those at the start.",
                f"To train this fold from the beginning, delete {job.folder}. Or start another run with --new.",
            )
        labelled_folders, confidence = _pseudo_label_cases(rows, teachers, exp, job, context)
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
            f"{', '.join(teacher_names)} made pseudo-labels of {len(labelled_folders)} of {len(rows)} "
            f"images; {100 * summary['ignored']:.1f} % of their voxels are uncertain, so the loss ignores "
            "them"
        )
    if is_main_process():
        write_lineage(job.folder, sources, extra_data.summary)
    return extra_data


def exclude_leaks(run: Run, table: pd.DataFrame, fold: int, key: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """Remove additional images that a fold must not train on, because they would reveal its validation cases.

    These are copies of validation cases, and images that belong to the group of a validation case.

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
    same_groups = same_ids or (comp.group is not None and extra is not None and extra.competition.group is not None)
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
            f"No image of {_data_name(key, run.exp)} is left for fold {fold}, because each image is a copy "
            "of a case that this fold validates, or belongs to the group of such a case.",
            "Name other images, or remove this section of the YAML.",
        )
    return kept, {reason: count for reason, count in Counter(reasons).items() if reason}


def _pseudo_label_cases(
    rows: pd.DataFrame, teachers: Sequence[Teacher], exp: Experiment, job: FoldJob, context: Context
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Predict the pseudo-labels of images, and store the images with them as preprocessed cases.

    Args:
        rows: rows of the table of unlabelled images.
        teachers: the teachers of the fold.
        exp: the experiment that trains on the images.
        job: the fold.
        context: context with the trusted packages and the log.

    Returns:
        Folder of each image whose pseudo-label is confident enough, by id. And statistics: `left_out` (the number of
        other images by reason), `ignored` (mean share of uncertain voxels) and `dice` (mean expected Dice).
    """
    from competition.io import remove_all_stale_temp

    assert exp.pseudo is not None
    remove_all_stale_temp(job.cache)
    ensemble = TeacherEnsemble(teachers, exp, job.cache, context)
    signature = [
        [(teacher.run.folder.name, teacher.digests()) for teacher in teachers],
        exp.pseudo.confidence.model_dump(mode="json"),
    ]
    confident, records = {}, []
    for done, row in enumerate(case_rows(rows), start=1):
        key = hashlib.sha256(
            json.dumps(["pseudo", 1, cache_key(row, exp), signature], sort_keys=True).encode()
        ).hexdigest()[:32]
        build = partial(pseudo_label_case, row=row, teachers=ensemble, exp=exp, cache=job.cache)
        folder = get_or_build(job.cache, key, build)
        record = json.loads((folder / RECORD_FILE).read_bytes())["pseudo"]
        records.append(record)
        if not record["doubt"]:
            confident[row.id] = folder
        if done % max(1, len(rows) // 4) == 0 and done < len(rows) and ensemble.is_loaded:
            context.say(f"{done} of {len(rows)} images labelled")
    if not confident:
        best = max(record["dice"] for record in records)
        raise MaskfoldError(
            f"The teachers of {job.folder.name} predict none of the {len(rows)} images with enough "
            f"confidence; the highest expected Dice is {best:.3f}.",
            "Lower pseudo.confidence.dice, or train better teachers.",
        )
    kept = [record for record in records if not record["doubt"]]
    return confident, {
        "left_out": dict(Counter(record["doubt"] for record in records if record["doubt"])),
        "ignored": float(np.mean([record["ignored"] for record in kept])),
        "dice": float(np.mean([record["dice"] for record in kept])),
    }


def _data_name(key: str, exp: Experiment) -> str:
    extra = extra_section(exp, key)
    return "pseudo-labels" if extra is None else f"extra cases of {extra.competition.name}"


def _channels(prepared: dict[str, Path]) -> int:
    return int(PreprocessedCase.open(next(iter(prepared.values()))).image.shape[0])


# Teachers


@dataclass(frozen=True)
class Teacher:
    """Hold the networks of one run that may teach a fold, because they were not trained on its validation cases.

    Attributes:
        run: the run of the networks.
        members: (fold, seed) of each network.
        sources: the cases on which the networks were trained.
    """

    run: Run
    members: tuple[tuple[int, int], ...]
    sources: tuple[TrainingCases, ...]

    @property
    def names(self) -> list[str]:
        """The names of the networks, e.g. `hippocampus-unet3d/2cb50ff146c0/fold_0`."""
        return [member_name(self.run, *member) for member in self.members]

    def weight_files(self) -> list[Path]:
        """Return the weight file of each network."""
        return [self.run.weights(*member) for member in self.members]

    def digests(self) -> list[str]:
        """Return the SHA-256 (hexadecimal) of each weight file.

        Raises:
            MaskfoldError: a file is missing.
        """
        try:
            return [sha256_of_file(path) for path in self.weight_files()]
        except OSError as error:
            raise MaskfoldError(
                f"pseudo.from: the weights {error.filename} cannot be read: {error.strerror}.",
                "Restore the file from a backup, or train that fold again.",
            ) from error


def find_teachers(run: Run, job: FoldJob) -> list[Teacher]:
    """Return the teachers of a fold, one for each run in `pseudo.from`.

    Only networks that were not trained on the fold's validation cases are teachers. If a run in `pseudo.from` has the
    same folds, these are the networks of the same fold. If it was trained on data of another competition, these are all
    its networks.

    Args:
        run: the run whose fold is taught.
        job: the fold.

    Raises:
        MaskfoldError: all networks of a run in `pseudo.from` were trained on validation cases of the fold (the message
            lists some of them), or the run has other classes (status 2).
    """
    pseudo, protected, teachers = run.exp.pseudo, HeldOutCases(run, job.fold), []
    context = Context(job.trust)
    for name in pseudo.teacher_names if pseudo is not None else ():
        teacher_run = load_run(Path(name), job.trust)
        refuse_first_stage([teacher_run], "teach (pseudo.from)")
        _check_same_classes(run.exp, teacher_run)
        clean_members: list[tuple[int, int]] = []
        sources: dict[TrainingCases, None] = {}
        all_leaks: list[Leak] = []
        for member in teacher_run.finished_members():
            seen_cases = training_cases(teacher_run, *member, context)
            if member_leaks := find_leaks(member_name(teacher_run, *member), seen_cases, protected):
                all_leaks += member_leaks
            else:
                clean_members.append(member)
                sources |= dict.fromkeys(cases_via("taught by", teacher_run, *member, context))
        if not clean_members:
            raise _no_teacher_error(run, job.fold, teacher_run, all_leaks)
        teachers.append(Teacher(teacher_run, tuple(clean_members), tuple(sources)))
    return teachers


def _no_teacher_error(run: Run, fold: int, teacher_run: Run, all_leaks: Sequence[Leak]) -> MaskfoldError:
    if not all_leaks:
        return MaskfoldError(
            f"pseudo.from: {teacher_run.folder} has no finished fold.",
            "Finish that run with its `maskfold cv` command.",
        )
    finished_members = teacher_run.finished_members()
    unfinished_folds = [number for number in teacher_run.fold_numbers() if (number, 0) not in finished_members]
    hint = (
        f"Its fold {fold} is unfinished and may be the missing teacher: finish that run, or use the same folds in both "
        if fold in unfinished_folds
        else "Use the same folds in both runs, so that each fold has a teacher that left out the same cases "
    )
    return MaskfoldError(
        f"pseudo.from: no network of {teacher_run.full_name} may teach fold {fold} of {run.name}, "
        f"because each of them was trained on cases that this fold validates:{format_leaks(all_leaks)}.",
        f"{hint}({_same_folds_setting(run, teacher_run)}).",
        status=2,
    )


def _same_folds_setting(run: Run, teacher_run: Run) -> str:
    file = teacher_run.folder / FOLDS_FILE
    if set(run.folds["id"]) == set(teacher_run.folds["id"]):
        return f"folds.scheme=file folds.file={file}"
    return f"with folds.scheme=file and a folds.file that contains your cases' rows of {file}"


def _check_same_classes(exp: Experiment, teacher_run: Run) -> None:
    """Check that a run in `pseudo.from` has the same classes, dimensions and order of axes.

    Its number of input channels is checked later, when its networks are built.

    Raises:
        MaskfoldError: one of these differs (status 2).
    """
    comp, teacher_comp = exp.competition, teacher_run.exp.competition
    for key in ("dimensions", "classes", "labels"):
        if getattr(comp, key) != getattr(teacher_comp, key):
            raise MaskfoldError(
                f"pseudo.from: {teacher_run.folder} has {key} {getattr(teacher_comp, key)}, expected "
                f"{getattr(comp, key)} (competition.{key}).",
                f"Name a run with the same {key}.",
                status=2,
            )
    axes, teacher_axes = competition_axes(comp), competition_axes(teacher_comp)
    if permutation(axes, teacher_axes) is not None:
        raise MaskfoldError(
            f"pseudo.from: {teacher_run.folder} was trained on images with the axes {teacher_axes}, expected {axes}.",
            "Name a run on images of the same format: NIfTI has the axes xy, pictures and TIFF yx.",
            status=2,
        )


class TeacherEnsemble:
    """Predict with an ensemble of teachers; the networks are built when the first image is predicted.

    Args:
        teachers: the teachers. The predictions of each teacher are averaged over its networks, and then over the
            teachers with equal weights.
        exp: the experiment that trains on the pseudo-labels. It defines where the images are, and the device.
        cache: folder of the preprocessed cases.
        context: context with the trusted packages.
    """

    def __init__(self, teachers: Sequence[Teacher], exp: Experiment, cache: Path, context: Context) -> None:
        self.teachers, self.exp, self.cache, self.context = teachers, exp, cache, context
        self._networks_by_teacher: dict[int, tuple[Any, list[Any]]] = {}

    @property
    def is_loaded(self) -> bool:
        """Whether networks are loaded, which happens when the first image is predicted that is not in the cache."""
        return bool(self._networks_by_teacher)

    def probabilities(self, row: Any) -> np.ndarray:
        """Predict one image; return its probabilities, (`comp.output_channels`, *file shape) float32.

        Args:
            row: row of the image in the table of unlabelled images.

        Raises:
            MaskfoldError: the image cannot be read or predicted.
        """
        from competition.data.preprocessing import preprocess_case
        from competition.inference.masks import merge_boundary_class
        from competition.inference.predict import predict_case

        total: np.ndarray | None = None
        for index, teacher in enumerate(self.teachers):
            exp = self._teacher_experiment(teacher)
            case = PreprocessedCase.open(preprocess_case(row, exp, self.cache))
            fabric, networks = self._load_networks(index, exp, case.image.shape[0])
            probabilities = merge_boundary_class(
                predict_case(networks, case, exp, fabric.device, fabric.autocast), exp.competition
            )
            total = probabilities if total is None else total + probabilities
        assert total is not None
        return total / np.float32(len(self.teachers))

    def _teacher_experiment(self, teacher: Teacher) -> Experiment:
        """Return the experiment of a teacher's run, with the data folder, images and device of `self.exp`."""
        exp = teacher.run.exp
        comp = exp.competition.model_copy(
            update={"root": self.exp.competition.root, "train": self.exp.competition.train}
        )
        return exp.model_copy(update={"competition": comp, "run": self.exp.run.model_copy(update={"devices": 1})})

    def _load_networks(self, index: int, exp: Experiment, channels: int) -> tuple[Any, list[Any]]:
        if index not in self._networks_by_teacher:
            fabric, teacher = make_fabric(exp)[0], self.teachers[index]
            networks = list(teacher.run.networks(channels, fabric.device, self.context, teacher.members))
            self._networks_by_teacher[index] = (fabric, networks)
        return self._networks_by_teacher[index]


# Prepared cases


def pseudo_label_case(
    folder: Path, row: Any, teachers: TeacherEnsemble, exp: Experiment, cache: Path
) -> dict[str, Any]:
    """Write an image with its pseudo-label as a preprocessed case.

    If the pseudo-label is too uncertain, write no arrays. `competition.data.cache.get_or_build` calls this function as
    its argument `build`.

    Args:
        folder: empty folder for the files of the preprocessed case.
        row: row of the image in the table of unlabelled images.
        teachers: ensemble that predicts the image.
        exp: the experiment that trains on the image.
        cache: folder in which preprocessed cases are stored.

    Returns:
        The content of `case.json`. Its value `pseudo.doubt` is empty if the image is used for training; otherwise it is
        the reason for not using it: `dice`, `entropy` or `ignored`.

    Raises:
        MaskfoldError: the image cannot be read or predicted.
    """
    from competition.data.preprocessing import link_or_copy, preprocess_case, write_mask
    from competition.inference.confidence import foreground_entropy, pseudo_mask, self_dice

    assert exp.pseudo is not None
    rule, comp = exp.pseudo.confidence, exp.competition
    probabilities = teachers.probabilities(row)
    mask = pseudo_mask(probabilities, comp, rule)
    dice, entropy = self_dice(probabilities, comp), foreground_entropy(probabilities, comp)
    if rule.dice is not None and dice < rule.dice:
        doubt = "dice"
    elif rule.entropy is not None and entropy > rule.entropy:
        doubt = "entropy"
    else:
        doubt = "ignored" if (mask == 255).all() else ""
    summary = {"pseudo": {"doubt": doubt, "dice": dice, "entropy": entropy, "ignored": float((mask == 255).mean())}}
    if doubt:
        return {"id": row.id, **summary}
    source = PreprocessedCase.open(preprocess_case(row, exp, cache))
    link_or_copy(source.folder / "image.npy", folder / "image.npy")
    write_mask(folder, mask, source.geometry, exp, row.id, _objects(mask, exp))
    record = json.loads((source.folder / RECORD_FILE).read_bytes())
    record.pop("sizes")
    return {**record, **summary}


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
    key = json_digest(parts)[:32]

    def build(folder: Path) -> dict[str, Any]:
        with unchanged_files(source_comp, row, fresh=True):
            image = transpose_image(load_image(source_comp, row), axes)
            record = write_image(folder, image, exp, str(row.id))
            objects = load_instances(source_comp, row) if exp.prepare.object_key else None
            mask = load_relabelled_mask(source_comp, row, comp, mapping)
        if axes is not None:
            objects = None if objects is None else objects.transpose(axes)
            mask = mask.transpose(0, *(axis + 1 for axis in axes))
        write_mask(folder, mask, Geometry.from_dict(record["geometry"]), exp, str(row.id), objects)
        return record

    return get_or_build(cache, key, build)


def _objects(mask: np.ndarray, exp: Experiment) -> np.ndarray | None:
    """Return the objects of a pseudo-label, as (*spatial) int32 numbers: the connected components of each class.

    If the experiment does not need objects, because neither `prepare.boundary` nor `prepare.rings` is set, return None.
    """
    if exp.prepare.object_key is None:
        return None
    import cc3d

    labels = np.where(mask[0] == 255, 0, mask[0]).astype(np.uint8)
    return np.asarray(cc3d.connected_components(labels, connectivity=8 if labels.ndim == 2 else 26)).astype(np.int32)
