"""Export runs to a bundle, a folder that can predict on a machine where this project is not installed."""

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
from competition.io import atomic_write, ensure_writable, sha256_of_file, write_json
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

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ExportOptions:
    """Select the optional contents of a bundle.

    Attributes:
        zipped: whether to also write a zip file next to the folder.
        onnx: whether to also write the networks as ONNX.
        wheels: whether to also download the packages' wheels.
        hours: the time limit that is written into the notebook.
        container: `grand-challenge`: whether to also write a Dockerfile and its entry point; see
            `competition.export.container`.
        input_slug: name of the container's input socket; None: the only input socket.
        output_slug: name of the container's output socket; None: the name of the competition.
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
    """Describe an exported bundle: folder, size in bytes, number of networks, packages, and zip file (or None)."""

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
    """Export runs as a bundle, after a test prediction of one patch; write the folder completely or not at all.

    Args:
        runs: finished runs of one competition.
        folder: folder of the bundle; an earlier bundle in it is replaced.
        weights: weights of the runs. `auto` fits the weights on the out-of-fold predictions; None means equal weights.
        options: optional contents.
        context: context with the trusted packages, whose files are copied into the bundle, and the log.

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
    """Return a row of the case table whose image exists, and the number of test cases (0 if unknown)."""
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
        f"The competition {comp.name} has no image below {comp.root}.",
        "Add competition.root=/path/to/the/data to the command.",
    )


def _write_runs_and_code(
    part: Path, ensemble: Ensemble, expected: ExpectedScore | None, options: ExportOptions, row: Any, context: Context
) -> dict[str, Any]:
    """Write weights, YAMLs and code; return the content of bundle.json, in which only the packages are missing."""
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
    """Copy a run's YAML and the weights of its trained networks; return the number of networks."""
    folder.mkdir(parents=True)
    plain, first = (_without_paths(resolve_for_prediction(exp)) for exp in (run.exp, ensemble.runs[0].exp))
    plain["competition"].update({key: first["competition"][key] for key in SUBMIT_TIME_KEYS})
    write_yaml(plain, folder / EXPERIMENT_FILE)
    members = run.checkpoints()
    for checkpoint in members:
        read_weights(checkpoint.path)  # check the original file first, because an error must not name the copy
        member = folder / run.member_folder(checkpoint.fold, checkpoint.seed).name
        copy_file(checkpoint.path, member / checkpoint.path.name)
        copy_file(checkpoint.path.parent / RESULT_FILE, member / RESULT_FILE)
    return len(members)


def _without_paths(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved experiment without paths of this machine and without keys that only training needs."""
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
    """Write the run's networks as ONNX files next to their weights."""
    from competition.export.onnx import ONNX_SUFFIX, write_onnx

    case_channels = count_channels(row, run, CACHE_FOLDER)
    channels = case_channels * (run.exp.patch.slices or 1)
    worst = 0.0
    for checkpoint, network in zip(run.checkpoints(), run.networks(case_channels, context=context), strict=True):
        member = folder / run.member_folder(checkpoint.fold, checkpoint.seed).name
        worst = max(
            worst, write_onnx(network, channels, run.exp, member / checkpoint.path.with_suffix(ONNX_SUFFIX).name)
        )
    context.say(f"{run.name} {run.folder.name} as ONNX: probabilities differ from torch's by at most {worst:.1g}")


def _write_requirements(
    part: Path, ensemble: Ensemble, row: Any, manifest: dict[str, Any], options: ExportOptions
) -> list[PinnedPackage]:
    """Write requirements.txt from the imports of a test prediction, and complete bundle.json."""
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
    """Write the notebook and README.md."""
    title = f"{ensemble.comp.name}: {', '.join(run['name'] + ' ' + run['hash'] for run in manifest['runs'])}"
    write_json(part / "notebook.ipynb", build_notebook(title, options.hours))
    score = (
        "There are no out-of-fold predictions, so the expected score is unknown."
        if expected is None
        else f"Out-of-fold score: {expected.metric} {expected.score:.4f} on {expected.cases} cases."
    )
    write_text(
        part / "README.md",
        build_readme(title, competition.__version__, "3.11", manifest["runs"], score, options.wheels, options.onnx),
    )


def _id_suffix(ensemble: Ensemble) -> str:
    """Return the suffix, e.g. `.png`, that the host's ids add to the image's name, as in the sample if there is one."""
    comp = ensemble.comp
    path = Path(comp.root) / str(comp.submission.sample)
    if comp.submission.sample is None or not path.is_file():
        return host_id_suffix(comp)
    keys = tuple(row.key for row in open_rows(path, profile_of(comp))[1])
    suffix = id_suffix(keys) if keys else host_id_suffix(comp)
    return suffix if has_reader(f"x{suffix}") else ""


def _root_markers(ensemble: Ensemble) -> list[str]:
    """Return the names that identify the competition's root: the sample submission and the folders of the images."""
    comp = ensemble.comp
    sources = [comp.test.images if comp.test is not None else {}, comp.train.images]
    patterns = [pattern for source in sources for pattern in ([source] if isinstance(source, str) else source.values())]
    folders = [pattern.split("{")[0].rpartition("/")[0] for pattern in patterns]
    return [marker for marker in dict.fromkeys([comp.submission.sample or "", *folders]) if marker]


# Files and folders


def check_replaceable(folder: Path) -> None:
    """Check that a folder is missing, empty or an unchanged bundle, so that no file of the user is lost.

    Raises:
        MaskfoldError: status 2; the folder contains other files.
    """
    ensure_writable(folder.absolute().parent)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    hint = "Set another --output, or remove this folder."
    if not (folder / BUNDLE_FILE).is_file() or not (folder / MANIFEST).is_file():
        raise MaskfoldError(f"{folder} exists and is not a bundle.", hint, status=2)
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
            f"The bundle {folder} contains a file that is not part of it: {extra_files[0]}.", hint, status=2
        )


def replace_folder(new: Path, folder: Path) -> None:
    """Replace `folder` with `new`."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def write_zip(folder: Path) -> Path:
    """Write a bundle as a zip file next to the bundle's folder. Member names begin with the name of the folder."""
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
    """Return all files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, and create its parent folders."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8."""
    content = text.encode()
    atomic_write(path, lambda file: file.write(content), len(content))
