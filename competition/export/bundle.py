"""Export runs to a bundle: a folder that can predict on a machine where Maskfold is not installed."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import competition
from competition.config.instantiate import trusted_packages
from competition.config.loading import resolve_for_prediction, write_yaml
from competition.config.profiles import profile_of
from competition.context import Context
from competition.data.cases import case_rows, case_table
from competition.data.readers import has_reader
from competition.ensembling.ensemble import count_channels
from competition.ensembling.expected import ExpectedScore
from competition.errors import MaskfoldError
from competition.export import run_script
from competition.export.bundle_files import build_notebook, build_readme
from competition.export.container import ENTRY_MODULE, check_container, write_container
from competition.export.predictor import EXPERIMENT_FILE
from competition.export.requirements import (
    PACKAGE,
    PinnedPackage,
    download_wheels,
    pinned_requirements,
    required_files,
    run_smoke_test,
    user_package_files,
)
from competition.export.runtime_cases import BUNDLE_FILE, BUNDLE_FORMAT, id_suffix
from competition.io import atomic_write, ensure_writable, sha256_of_file
from competition.records import write_json
from competition.runs.blend import Ensemble, check_same_competition
from competition.runs.cascade.first_stage import refuse_first_stage
from competition.runs.checkpoint import read_weights
from competition.runs.find import SUBMIT_TIME_KEYS
from competition.runs.fold import RESULT_FILE
from competition.runs.imported import refuse_imported
from competition.runs.outputs import check_output, competitions_of
from competition.runs.run import CACHE_FOLDER, Run
from competition.submission.reader import open_rows
from competition.submission.submit import fit_on_oof, normalize_weights
from competition.submission.testset import host_id_suffix
from competition.text import format_count

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ExportOptions:
    """Select the optional contents of a bundle.

    Attributes:
        zipped: whether to also write a zip file next to the folder.
        onnx: whether to also write the networks as ONNX files.
        wheels: whether to also download the wheels of the required packages.
        hours: the competition's time limit in hours, which is written into the notebook.
        container: `grand-challenge` to also write a Dockerfile and an entry point for Grand Challenge, see
            `competition.export.container`; None for no container.
        input_slug: name of the socket (Grand Challenge's name for an input or output) with the input images. None if
            the container has a single input socket.
        output_slug: name of the output socket of the container; None for the name of the competition.
    """

    zipped: bool = False
    onnx: bool = False
    wheels: bool = False
    hours: float = 9.0
    container: str | None = None
    input_slug: str | None = None
    output_slug: str | None = None


@dataclass(frozen=True)
class ExportResult:
    """Describe an exported bundle.

    Attributes:
        folder: the folder of the bundle.
        size: size of all its files in bytes.
        networks: number of networks.
        pins: the required packages with their versions.
        archive: the zip file; None if none was written.
    """

    folder: Path
    size: int
    networks: int
    pins: list[PinnedPackage]
    archive: Path | None


def export_runs(
    runs: Sequence[Run],
    folder: Path,
    weights: Sequence[float] | str | None = None,
    options: ExportOptions = ExportOptions(),
    context: Context = Context(),
) -> ExportResult:
    """Export runs as a bundle, after testing the bundle by predicting one patch.

    The folder is either written completely, or not at all.

    Args:
        runs: finished runs of one competition.
        folder: folder of the bundle; an earlier bundle in it is replaced.
        weights: one weight per run; `auto` fits the weights on out-of-fold predictions; None for equal weights.
        options: the optional contents of the bundle.
        context: context with the log and the trusted packages; the files of the user's own packages are copied into the
            bundle.

    Raises:
        MaskfoldError: the runs cannot be combined, the folder contains files that are not part of a bundle, or the test
            prediction fails.
    """
    check_same_competition(runs)
    refuse_imported(runs, "be exported")
    refuse_first_stage(runs, "be exported")
    check_container(options.container, runs[0].exp.competition, options.input_slug, options.output_slug)
    check_output([folder], competitions_of(runs))
    check_replaceable(folder)
    ensemble = Ensemble(tuple(runs), normalize_weights(weights, len(runs)))
    row, test_cases = _example_case(ensemble)
    ensemble, _, expected = fit_on_oof(ensemble, weights, test_cases or len(runs[0].cases), context)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        manifest = _write_runs_and_code(part, ensemble, expected, options, row, context)
        packages = _write_requirements(part, ensemble, row, manifest, options)
        _write_pages(part, ensemble, manifest, expected, options)
        if options.container is not None:
            write_container(part, ensemble.comp, options.input_slug, options.output_slug)
        write_json(
            part / MANIFEST,
            {"files": {path.relative_to(part).as_posix(): sha256_of_file(path) for path in list_files(part)}},
        )
        replace_folder(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    size = sum(path.stat().st_size for path in list_files(folder))
    networks = sum(run["networks"] for run in manifest["runs"])
    return ExportResult(folder, size, networks, packages, write_zip(folder) if options.zipped else None)


def _example_case(ensemble: Ensemble) -> tuple[Any, int]:
    """Return a case for the test prediction, and the number of test cases.

    The case is the first test case. Without test images, it is the first training case, and the number is 0.

    Raises:
        MaskfoldError: there is no image.
    """
    comp = ensemble.comp
    first_error: MaskfoldError | None = None
    for split in ("test", "train"):
        try:
            rows = case_rows(case_table(comp, split)) if split == "train" or comp.test is not None else []
        except MaskfoldError as error:
            first_error = first_error or error
            continue
        if rows:
            return rows[0], len(rows) if split == "test" else 0
    raise first_error or MaskfoldError(
        f"The competition {comp.name} has no image below {comp.root}, but the test of the bundle needs one.",
        "If the data are elsewhere, add competition.root=/path/to/the/data to the command.",
    )


def _write_runs_and_code(
    part: Path, ensemble: Ensemble, expected: ExpectedScore | None, options: ExportOptions, row: Any, context: Context
) -> dict[str, Any]:
    """Write the weights, YAML files and code of a bundle.

    Args:
        part: temporary folder in which the bundle is made.
        ensemble: the runs and their weights.
        expected: the expected score; None if it is unknown.
        options: the optional contents of the bundle.
        row: row of the case table; the ONNX export reads the number of channels from this case.
        context: context with the trusted packages and the log.

    Returns:
        The content of `bundle.json`, still without the required packages.
    """
    runs = []
    for number, (run, weight) in enumerate(ensemble.active):
        run_folder = Path("runs") / f"{number}-{run.name}-{run.folder.name}"
        count = _copy_run(run, ensemble, part / run_folder)
        if options.onnx:
            _write_onnx_networks(run, part / run_folder, row, context)
        runs.append(
            {
                "folder": run_folder.as_posix(),
                "name": run.name,
                "hash": run.folder.name,
                "weight": weight,
                "networks": count,
            }
        )
    targets = _targets(ensemble)
    entries = [ENTRY_MODULE] if options.container is not None else []
    for path in required_files([*targets, *entries])[0]:
        copy_file(PACKAGE / path, part / "code" / "competition" / path)
    own = sorted({target.split(".")[0] for target in targets} - trusted_packages())
    for root in own:
        for source, path in user_package_files(root):
            copy_file(source, part / "code" / path)
    copy_file(Path(run_script.__file__), part / "run.py")
    settings = expected.settings if expected is not None else ensemble.runs[0].exp.postprocess
    return {
        "format": BUNDLE_FORMAT,
        "competition": ensemble.comp.name,
        "maskfold": competition.__version__,
        "runs": runs,
        "postprocess": settings.model_dump(mode="json"),
        "ending": _id_suffix(ensemble),
        "trust": own,
        "onnx": options.onnx,
        "marks": _root_markers(ensemble),
    }


def _targets(ensemble: Ensemble) -> list[str]:
    """Return the import paths of the networks and of the user's own post-processing steps."""
    return [path for run, _ in ensemble.active for path in (run.exp.model.target, *run.exp.postprocess.own_targets)]


def _copy_run(run: Run, ensemble: Ensemble, folder: Path) -> int:
    """Copy the YAML of a run and the weights of its networks into a folder; return the number of networks.

    The keys of `competition` in `SUBMIT_TIME_KEYS` may change after training, so their values come from the ensemble's
    first run.
    """
    folder.mkdir(parents=True)
    plain, first = (_without_paths(resolve_for_prediction(exp)) for exp in (run.exp, ensemble.runs[0].exp))
    plain["competition"].update({key: first["competition"][key] for key in SUBMIT_TIME_KEYS})
    write_yaml(plain, folder / EXPERIMENT_FILE)
    members = run.checkpoints()
    for checkpoint in members:
        read_weights(checkpoint.path)  # check the original file, so that an error names it and not the copy
        member = folder / run.member_folder(checkpoint.fold, checkpoint.seed).name
        copy_file(checkpoint.path, member / checkpoint.path.name)
        copy_file(checkpoint.path.parent / RESULT_FILE, member / RESULT_FILE)
    return len(members)


def _without_paths(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved YAML without paths of this machine, and without keys that only training needs.

    Each absolute path is replaced by the name of its file. `plain` is changed in place.
    """
    plain["competition"]["root"] = "."
    plain["run"] = {"accelerator": plain["run"]["accelerator"]}
    for key in ("init_from", "encoder_weights", "study", "pseudo", "extra"):
        plain.pop(key, None)
    for key in ("encoder_weights", "pretrained"):
        if isinstance(plain["model"]["args"].get(key), str):
            plain["model"]["args"][key] = None

    def strip_folders(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip_folders(item) for key, item in value.items()}
        if isinstance(value, list):
            return [strip_folders(item) for item in value]
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    return dict(strip_folders(plain))


def _write_onnx_networks(run: Run, folder: Path, row: Any, context: Context) -> None:
    """Write the networks of a run as ONNX files next to their weights in the bundle.

    Args:
        run: the run.
        folder: folder of the run in the bundle.
        row: row of a case, which defines the number of input channels.
        context: context with the trusted packages and the log.
    """
    from competition.export.onnx import ONNX_SUFFIX, write_onnx

    case_channels = count_channels(row, run, CACHE_FOLDER)
    channels = case_channels * (run.exp.patch.slices or 1)
    worst = 0.0
    for checkpoint, network in zip(run.checkpoints(), run.networks(case_channels, context=context), strict=True):
        member = folder / run.member_folder(checkpoint.fold, checkpoint.seed).name
        worst = max(
            worst, write_onnx(network, channels, run.exp, member / checkpoint.path.with_suffix(ONNX_SUFFIX).name)
        )
    context.say(
        f"{run.name} {run.folder.name}: ONNX files written; their probabilities differ from those of torch by at most "
        f"{worst:.1g}"
    )


def _write_requirements(
    part: Path, ensemble: Ensemble, row: Any, manifest: dict[str, Any], options: ExportOptions
) -> list[PinnedPackage]:
    """Test the bundle with a prediction, and write `requirements.txt` from the modules that the prediction imports.

    The packages are also added to `bundle.json`.

    Args:
        part: temporary folder in which the bundle is made.
        ensemble: the runs and their weights.
        row: row of the case to predict.
        manifest: content of `bundle.json`; it is completed in place.
        options: the optional contents of the bundle.

    Returns:
        The required packages with their versions.
    """
    write_json(part / BUNDLE_FILE, {**manifest, "requirements": []})
    targets = _targets(ensemble)
    named = required_files(targets)[1] | {target.split(".")[0] for target in targets}
    root = Path(ensemble.comp.root)
    imported = run_smoke_test(part, root, row, False) | (
        run_smoke_test(part, root, row, True) if options.onnx else set()
    )
    packages = pinned_requirements(imported, named)
    manifest["requirements"] = [
        {"name": pin.name, "version": pin.version, "modules": list(pin.modules)} for pin in packages
    ]
    write_json(part / BUNDLE_FILE, manifest)
    write_text(part / "requirements.txt", "".join(f"{pin.line()}\n" for pin in packages))
    if options.wheels:
        download_wheels(packages, part / "wheels")
    return packages


def _write_pages(
    part: Path, ensemble: Ensemble, manifest: dict[str, Any], expected: ExpectedScore | None, options: ExportOptions
) -> None:
    """Write the notebook and the `README.md` of a bundle."""
    title = f"{ensemble.comp.name}: {', '.join(run['name'] + ' ' + run['hash'] for run in manifest['runs'])}"
    write_json(part / "notebook.ipynb", build_notebook(title, options.hours))
    score = (
        "There are no out-of-fold predictions, so the expected score is unknown."
        if expected is None
        else f"Out-of-fold score: {expected.metric} {expected.score:.4f} on {format_count(expected.cases, 'case')}."
    )
    write_text(
        part / "README.md",
        build_readme(title, competition.__version__, "3.11", manifest["runs"], score, options.wheels, options.onnx),
    )


def _id_suffix(ensemble: Ensemble) -> str:
    """Return the suffix that the host's ids have after the case id, e.g. `.png`; it may be empty.

    If there is a sample submission, its ids show the suffix. Otherwise, the suffix is the result of
    `competition.submission.testset.host_id_suffix`.
    """
    comp = ensemble.comp
    path = Path(comp.root) / str(comp.submission.sample)
    if comp.submission.sample is None or not path.is_file():
        return host_id_suffix(comp)
    keys = tuple(row.key for row in open_rows(path, profile_of(comp))[1])
    suffix = id_suffix(keys) if keys else host_id_suffix(comp)
    return suffix if has_reader(f"x{suffix}") else ""


def _root_markers(ensemble: Ensemble) -> list[str]:
    """Return paths by which a notebook recognises the competition's data folder.

    These are the sample submission and the folders of the images, relative to the data folder.
    """
    comp = ensemble.comp
    sources = [comp.test.images if comp.test is not None else {}, comp.train.images]
    patterns = [pattern for source in sources for pattern in ([source] if isinstance(source, str) else source.values())]
    folders = [pattern.split("{")[0].rpartition("/")[0] for pattern in patterns]
    return [marker for marker in dict.fromkeys([comp.submission.sample or "", *folders]) if marker]


# Files and folders


def check_replaceable(folder: Path) -> None:
    """Check that a folder may be replaced: it does not exist, is empty, or contains only the files of a bundle.

    Raises:
        MaskfoldError: the folder contains other files, or its parent cannot be written (status 2).
    """
    ensure_writable(folder.absolute().parent)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    hint = "Set another folder with --output, or remove this folder."
    if not (folder / BUNDLE_FILE).is_file() or not (folder / MANIFEST).is_file():
        raise MaskfoldError(f"{folder} exists and is not a bundle, so it is not replaced.", hint, status=2)
    try:
        manifest = set(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]) | {MANIFEST}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise MaskfoldError(
            f"The bundle {folder} is damaged: its {MANIFEST} cannot be read.", hint, status=2
        ) from error
    extra_files = [
        name
        for name in (path.relative_to(folder).as_posix() for path in list_files(folder))
        if name not in manifest and "__pycache__" not in name
    ]
    if extra_files:
        raise MaskfoldError(
            f"The bundle {folder} contains {extra_files[0]}, expected only the files that maskfold export writes.",
            hint,
            status=2,
        )


def replace_folder(new: Path, folder: Path) -> None:
    """Move the folder `new` to the path `folder`; an existing folder there is removed."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def write_zip(folder: Path) -> Path:
    """Write a zip file of a bundle next to its folder, and return its path.

    The names of the files in the archive begin with the name of the folder.
    """
    archive = folder.with_name(f"{folder.name}.zip")

    def write(stream: Any) -> None:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as zipped:
            for path in list_files(folder):
                info = zipfile.ZipInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}", (1980, 1, 1, 0, 0, 0))
                info.compress_type = zipfile.ZIP_DEFLATED
                with open(path, "rb") as source, zipped.open(info, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target)

    atomic_write(archive, write)
    return archive


def list_files(folder: Path) -> list[Path]:
    """Return the paths of all files in a folder and its subfolders, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; create the parent folders of the copy if they do not exist."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def write_text(path: Path, text: str) -> None:
    """Write a text to a file atomically, as UTF-8."""
    content = text.encode()
    atomic_write(path, lambda file: file.write(content), len(content))
