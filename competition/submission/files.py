"""Write submissions that consist of label files instead of a CSV, as a folder or a zip archive.

The files contain the same post-processed masks that a CSV would contain. Their geometry (e.g. the affine) is that of
the images. Each file is read back after it was written. If the host provides a sample submission, names, sizes and
types of the files are compared with it. The submission is written to a temporary folder. After all checks, it is moved
to its path.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from competition import large_arrays
from competition.config.axes import permutation
from competition.config.competition import Competition
from competition.context import Context, no_log
from competition.data.cases import case_rows, case_table
from competition.data.image_types import check_not_bomb
from competition.data.readers import row_axes
from competition.data.selection import warn_skipped
from competition.ensembling.ensemble import EnsemblePredictor
from competition.errors import MaskfoldError
from competition.io import ensure_writable, sha256_of_file, temporary_folder
from competition.postprocessing.case import CasePrediction
from competition.postprocessing.pipeline import postprocess
from competition.records import SUBMISSION_DIGEST, json_digest, with_own_digest, write_json
from competition.runs.blend import Ensemble, check_same_competition
from competition.runs.imported import check_test_predictions
from competition.runs.outputs import check_output, competitions_of
from competition.runs.run import Run
from competition.submission.formats import FileHeader, axes_of_format, check_writer, read_file_header, write_labels
from competition.submission.label_files import label_arrays, region_values, submission_labels
from competition.submission.submit import (
    SUBMISSIONS_FOLDER,
    SubmissionResult,
    fit_on_oof,
    normalize_weights,
    scores_path,
    submission_name,
    submission_summary,
)
from competition.submission.validate import ValidationReport
from competition.tables import write_table
from competition.text import and_more, fold_name

ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # time of all files in an archive, so that the same masks give the same archive
# Errors of reading an archive. An encrypted file raises a RuntimeError, an unknown compression a NotImplementedError.
ZIP_ERRORS = (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error, EOFError)
# Extensions of files that are compressed already, and are not compressed again in an archive.
STORED_EXTENSIONS = (".gz", ".png", ".mha")


@dataclass(frozen=True)
class SampleFiles:
    """Hold the host's sample submission: a folder or a zip archive of label files.

    Attributes:
        path: path of the folder or archive.
        names: sorted paths of the files in the folder or archive, with `/` between folders.
    """

    path: Path
    names: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> SampleFiles:
        """Return the sample submission at a path, with the names of its files.

        Raises:
            MaskfoldError: the sample submission is missing, empty, or neither a folder nor a zip archive.
        """
        if path.is_dir():
            names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
        else:
            try:
                with zipfile.ZipFile(path) as archive:
                    names = [member.filename for member in archive.infolist() if not member.is_dir()]
            except ZIP_ERRORS as error:
                raise MaskfoldError(
                    f"submission.sample: {path} cannot be read as a folder or a zip archive: {error}.",
                    "With submission.files, the sample submission must be a zip archive or a folder of label files. If "
                    "the host provides none, omit submission.sample.",
                    status=2,
                ) from error
        visible = [
            name
            for name in names
            if not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
        ]
        if not visible:
            raise MaskfoldError(
                f"submission.sample: {path} contains no file.", "Download the sample submission again.", status=2
            )
        return cls(path, tuple(sorted(visible)))

    def check_names(self, expected: Sequence[str]) -> None:
        """Check that the sample submission has exactly the expected files.

        Args:
            expected: names of the files of all test cases.

        Raises:
            MaskfoldError: a file is missing, or belongs to no test case.
        """
        found, wanted = set(self.names), set(expected)
        if found == wanted:
            return
        missing, other = sorted(wanted - found), sorted(found - wanted)
        parts = [f"lacks {missing[0]}{and_more(len(missing), 1, 'file')}"] if missing else []
        verb = "belongs" if len(other) == 1 else "belong"
        parts += [f"has {other[0]}{and_more(len(other), 1, 'file')}, which {verb} to no test case"] if other else []
        raise MaskfoldError(
            f"The sample submission {self.path} {', and '.join(parts)}.",
            "Correct submission.files (the pattern of the file names) or test.images.",
        )

    def header(self, name: str, dimensions: int, scratch: Path) -> FileHeader:
        """Return the shape and dtype of one label file in the sample submission.

        Args:
            name: name of the file, from `names`.
            dimensions: number of spatial axes, 2 or 3.
            scratch: folder for temporary files, into which a file of an archive is unpacked.

        Raises:
            MaskfoldError: the file is damaged.
        """
        if self.path.is_dir():
            return read_file_header(self.path / name, dimensions)
        target = scratch / f"sample-{PurePosixPath(name).name}"
        try:
            with zipfile.ZipFile(self.path) as archive:
                check_not_bomb(self.path, archive.getinfo(name).file_size)
                with archive.open(name) as source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file)
            return read_file_header(target, dimensions)
        except ZIP_ERRORS as error:
            raise MaskfoldError(
                f"{name} in {self.path} is damaged: {error}.", "Download the sample submission again."
            ) from error
        finally:
            target.unlink(missing_ok=True)


def file_names(comp: Competition, case_id: str) -> dict[str, str]:
    """Return the names of the label files of a case, according to the pattern `submission.files`.

    Returns:
        A dictionary from class to file name. If one file contains all classes, its key is "".

    Raises:
        MaskfoldError: the classes overlap and cannot be written into one file (status 2).
    """
    pattern = str(comp.submission.files)
    if "{class}" in pattern:
        return {name: _fill(pattern, case_id, name) for name in comp.classes}
    if comp.labels == "overlapping" and len(comp.classes) > 1:
        hint = "Add {class} to the pattern, so that each class gets its own file: {class}/{id}.png."
        region_values(comp, "submission.files", hint)
    return {"": _fill(pattern, case_id, "")}


def _fill(pattern: str, case_id: str, cls: str) -> str:
    """Replace `{id}` and `{class}` in the pattern of a file name; an id that itself contains `{class}` is kept."""
    return re.sub(r"\{(id|class)\}", lambda match: case_id if match[1] == "id" else cls, pattern)


def check_file_names(names: Mapping[str, Mapping[str, str]]) -> None:
    """Check that all files of a submission have different names.

    Names that differ only in upper and lower case, or in their Unicode form, are treated as the same name, because some
    file systems do not distinguish them.

    Args:
        names: name of each file by case id and class, see `file_names`.

    Raises:
        MaskfoldError: two files have the same name (status 2).
    """
    seen: dict[str, tuple[str, str, str]] = {}
    for case_id, by_class in names.items():
        for cls, name in by_class.items():
            first_case, first_cls, first = seen.setdefault(fold_name(name), (case_id, cls, name))
            if (first_case, first_cls) == (case_id, cls):
                continue
            problem = f"the file names {first} and {name} differ only in upper and lower case or Unicode form."
            if first == name:
                one, other = (
                    f"case {case}" + (f", class {owner}," if owner else "")
                    for case, owner in ((first_case, first_cls), (case_id, cls))
                )
                problem = f"the files of {one} and {other} would have the same name {name}."
            raise MaskfoldError(
                f"submission.files: {problem}",
                "Put the classes into different folders ({class}/{id}"
                + PurePosixPath(name).suffix
                + "), or rename one of the images.",
                status=2,
            )


def file_labels(prediction: CasePrediction, comp: Competition) -> dict[str, np.ndarray[Any, Any]]:
    """Return the content of a case's label files: (*spatial) uint8 or uint16 arrays, with the keys of `file_names`.

    Args:
        prediction: masks and objects of the case.
        comp: the competition; `submission.labels` sets the label values.
    """
    values = comp.submission.labels
    by_class = "{class}" in str(comp.submission.files)
    if by_class:
        single = comp.model_copy(update={"labels": "overlapping"})
        arrays: dict[str, np.ndarray[Any, Any]] = dict(label_arrays(prediction, single))
        if values is not None and not comp.instances:
            arrays = {name: _with_value(arrays[name], value) for name, value in zip(comp.classes, values, strict=True)}
        return arrays
    return {"": submission_labels(prediction, comp)}


def _with_value(mask: np.ndarray[Any, Any], value: int) -> np.ndarray[Any, Any]:
    labels = large_arrays.copy(mask, np.uint8 if value < 256 else np.uint16)
    np.multiply(labels, value, out=labels)
    return labels


def submit_files(
    runs: Sequence[Run],
    weights: Sequence[float] | str | None = None,
    output: Path | None = None,
    trust: tuple[str, ...] = (),
    say: Callable[[str], None] = no_log,
    progress: Callable[[Iterator[Any], int], Iterator[Any]] = lambda rows, _: rows,
) -> SubmissionResult:
    """Predict the test cases with every fold of every run, and write the label files that `submission.files` names.

    Args:
        runs: finished runs of one competition.
        weights: one weight per run; `auto` fits the weights on out-of-fold predictions; None for equal weights.
        output: path of the folder to write or, if `submission.zip` is true, of the zip archive. None for a path in
            `submissions/<competition>`.
        trust: additional packages from which a `target` in the YAML may be imported.
        say: function that receives messages for the user.
        progress: function that wraps the iteration over the cases, e.g. with a progress bar. It receives an iterator
            and the number of cases, and returns an iterator.

    Returns:
        The written submission. In its validation report, `rows` and `empty` are numbers of files instead of rows.

    Raises:
        MaskfoldError: an input is missing, damaged or inconsistent, or a file differs from the sample submission. No
            incomplete submission is left on the disk.
    """
    context = Context(trust, say)
    check_same_competition(runs)
    ensemble = Ensemble(tuple(runs), normalize_weights(weights, len(runs)))
    comp = ensemble.comp
    rows = case_rows(warn_skipped(case_table(comp, "test")))
    names = {row.id: file_names(comp, row.id) for row in rows}
    check_file_names(names)
    every_name = [name for by_class in names.values() for name in by_class.values()]
    check_writer(every_name[0])
    headers: dict[str, FileHeader] = {}
    if comp.submission.sample is not None:
        sample = SampleFiles.open(Path(comp.root) / comp.submission.sample)
        sample.check_names(every_name)
        headers = check_sample_headers(sample, comp, rows, names)
    suffix = ".zip" if comp.submission.zip else ""
    path = output or SUBMISSIONS_FOLDER / comp.name / f"{submission_name(runs, weights)}{suffix}"
    check_files_output(path, comp, runs)
    check_test_predictions([run for run, _ in ensemble.active], rows)
    predictor = EnsemblePredictor(ensemble, rows[0], context)
    ensemble, fitted, expected = fit_on_oof(ensemble, weights, len(rows), context)
    if fitted is not None:
        predictor = EnsemblePredictor(ensemble, rows[0], context)
    settings = expected.settings if expected is not None else runs[0].exp.postprocess
    empty = 0
    with temporary_folder(path) as staging:
        folder = staging / "files"
        folder.mkdir()
        for row in progress(iter(rows), len(rows)):
            probabilities, presence = predictor.predict(row)
            arrays = file_labels(postprocess(probabilities, comp, settings, row, presence), comp)
            empty += sum(not labels.any() for labels in arrays.values())
            for cls, name in names[row.id].items():
                _write_checked(folder / name, arrays[cls], row, comp, headers.get(name), name)
        validation = ValidationReport(path, len(every_name), empty, ())
        staged = _zip(folder, staging / path.name) if comp.submission.zip else folder
        digests = {name: sha256_of_file(folder / name) for name in sorted(every_name)}
        content = submission_summary(
            path.name, folder / every_name[0], ensemble, predictor.checkpoints, expected, fitted, validation
        )
        content["sha256"] = sha256_of_file(staged) if comp.submission.zip else json_digest(digests)
        content["files"] = digests
        _replace(staged, path, content, expected.rows if expected is not None else None, staging)
    return SubmissionResult(path, _summary_path(path), validation, ensemble, expected)


def check_sample_headers(
    sample: SampleFiles, comp: Competition, rows: Sequence[Any], names: Mapping[str, Mapping[str, str]]
) -> dict[str, FileHeader]:
    """Check that each file in the sample submission fits its image, and return its shape and dtype, by file name.

    The check runs before any prediction, so that a problem is reported early.

    Args:
        sample: the host's sample submission, after `SampleFiles.check_names`.
        comp: the competition.
        rows: rows of the test cases in the case table.
        names: name of each file by case id and class, see `file_names`.

    Raises:
        MaskfoldError: a file cannot be read, has another size than its image, or has a type that cannot hold the label
            values.
    """
    headers = {}
    with tempfile.TemporaryDirectory() as scratch:
        for row in rows:
            shape = tuple(json.loads(row.shape))
            for cls, name in names[row.id].items():
                header = sample.header(name, comp.dimensions, Path(scratch))
                order = permutation(row_axes(comp, row), axes_of_format(Path(name), comp.dimensions))
                expected = shape if order is None else tuple(shape[axis] for axis in order)
                if header.shape != expected:
                    found, wanted = ("×".join(map(str, sizes)) for sizes in (header.shape, expected))
                    raise MaskfoldError(
                        f"{name} in the sample submission {sample.path} has the shape {found}, expected {wanted}, "
                        f"which is the shape of the image {row.id}.",
                        "Download the sample submission again, or omit submission.sample.",
                    )
                _as_type(np.array(file_values(comp, cls), np.int64), header.dtype, name)
                headers[name] = header
    return headers


def file_values(comp: Competition, cls: str) -> list[int]:
    """Return the label values other than 0 that a file can contain.

    If the files contain object numbers (`competition.instances`), return an empty list, because these numbers depend on
    the prediction.

    Args:
        comp: the competition.
        cls: class of the file; empty if the file contains all classes.
    """
    values = comp.submission.labels
    if comp.instances:
        return []
    if cls:
        return [1 if values is None else values[comp.classes.index(cls)]]
    if comp.labels == "overlapping" and len(comp.classes) > 1:
        return list(region_values(comp).values()) if values is None else values
    return [int(value) for value in (comp.output_label_values if values is None else values)]


def _write_checked(
    path: Path, labels: np.ndarray[Any, Any], row: Any, comp: Competition, wanted: FileHeader | None, name: str
) -> None:
    """Write one label file, and check that the file in the sample submission has the same shape and dtype.

    Args:
        path: path of the file.
        labels: (*spatial) integers.
        row: row of the case table.
        comp: the competition.
        wanted: shape and dtype of the same file in the sample submission; None if there is no sample submission.
        name: name of the file in the submission, for messages.

    Raises:
        MaskfoldError: the file differs from the one in the sample submission, or cannot be written.
    """
    source = next(iter(json.loads(row.images).values()))
    source = Path(comp.root) / (source if isinstance(source, str) else source[0])
    if wanted is not None:
        labels = _as_type(labels, wanted.dtype, name)
    write_labels(path, labels, source, row, comp)
    found = read_file_header(path, comp.dimensions)
    if wanted is not None and found != wanted:
        raise MaskfoldError(
            f"{name}: found the shape {found.shape} and the type {found.dtype}, expected {wanted.shape} and "
            f"{wanted.dtype}, as in the sample submission.",
            "Download the sample submission again, or omit submission.sample.",
        )


def _as_type(labels: np.ndarray[Any, Any], dtype: str, name: str) -> np.ndarray[Any, Any]:
    """Convert labels to the dtype of the file in the sample submission; `name` is its file name, for messages.

    Raises:
        MaskfoldError: the type is unknown or cannot hold the values.
    """
    try:
        converted = large_arrays.copy(labels, dtype)
    except TypeError as error:
        raise MaskfoldError(
            f"{name}: the values in the sample submission have the type {dtype}, expected integers or floats.",
            "Omit submission.sample.",
        ) from error
    if not large_arrays.are_equal(converted, labels):
        raise MaskfoldError(
            f"{name}: the values in the sample submission have the type {dtype}, but this type cannot hold the label "
            f"{int(labels.max())}.",
            "Set smaller label values with submission.labels.",
        )
    return converted


def _zip(folder: Path, archive: Path) -> Path:
    """Write all files of a folder into a zip archive, check its checksums, and return its path.

    Raises:
        MaskfoldError: the checksum of a file in the archive is wrong.
    """
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(file for file in folder.rglob("*") if file.is_file()):
            member = zipfile.ZipInfo(path.relative_to(folder).as_posix(), ZIP_TIME)
            stored = path.name.lower().endswith(STORED_EXTENSIONS)
            member.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            out.writestr(member, path.read_bytes())
    with zipfile.ZipFile(archive) as written:
        if (damaged := written.testzip()) is not None:
            raise MaskfoldError(
                f"The archive {archive.name} is damaged: the checksum of {damaged} in it is wrong.",
                "Run the command again. If the error repeats, write to another disk with -o.",
            )
    with open(archive, "rb") as stream:
        os.fsync(stream.fileno())
    return archive


def check_files_output(path: Path, comp: Competition, runs: Sequence[Run]) -> None:
    """Check that a submission of label files may be written to a path.

    An existing folder may be replaced only if all its files belong to an earlier submission.

    Args:
        path: path of the folder or archive.
        comp: the competition.
        runs: the runs of the submission. Their folders and data must not be overwritten.

    Raises:
        MaskfoldError: the path is not allowed (status 2).
    """
    hint = "Give another path with -o."
    if comp.submission.zip and (path.suffix.lower() != ".zip" or path.is_dir()):
        found = f"the folder {path}" if path.is_dir() else path
        raise MaskfoldError(
            f"--output: found {found}, expected a file name that ends in .zip, because submission.zip is true.",
            hint,
            status=2,
        )
    if not comp.submission.zip and path.is_file():
        raise MaskfoldError(
            f"--output: found the file {path}, expected a folder, because submission.zip is false.", hint, status=2
        )
    check_output([path, _summary_path(path)], competitions_of(runs))
    ensure_writable(path.absolute().parent)
    if path.is_dir():
        try:
            earlier = set(json.loads(_summary_path(path).read_text(encoding="utf-8"))["files"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            earlier = set()
        others = [file for file in path.rglob("*") if file.is_file()]
        if other := next((file for file in others if file.relative_to(path).as_posix() not in earlier), None):
            raise MaskfoldError(
                f"--output: found the file {other.name} in the folder {path}, expected only files of an earlier "
                "submission.",
                hint,
                status=2,
            )


def _summary_path(path: Path) -> Path:
    return path.with_name(f"{path.name.removesuffix('.zip')}.json")


def _replace(staged: Path, path: Path, content: dict[str, Any], rows: Any, staging: Path) -> None:
    """Move a complete submission to its final path, and replace an old submission there.

    First the old files are removed, then the JSON is written, and the new files are moved last. So the files never lie
    beside the JSON of another submission, even if the process is killed.

    Args:
        staged: temporary path of the new folder or archive.
        path: final path.
        content: content of the JSON.
        rows: table of out-of-fold scores to write beside the submission; None if there are none.
        staging: temporary folder into which an old folder is moved.
    """
    if path.is_dir():
        os.replace(path, staging / "old")
    else:
        path.unlink(missing_ok=True)
    write_json(_summary_path(path), with_own_digest(content, SUBMISSION_DIGEST))
    scores = scores_path(_summary_path(path))
    if rows is not None:
        write_table(rows, scores)
    else:
        scores.unlink(missing_ok=True)
    os.replace(staged, path)
