"""Compute and record digests of the files that a run's YAML refers to.

The YAML contains only the paths of files, not their content. Therefore the hash of a run (see
`competition.runs.identity.hashing`) also covers digests of the folds, of weight files, and of the user's own code.
`contents.json` in the run's folder records all inputs of the hash. With this record, a later command detects whether
these files, or the YAML in the run's folder, have changed.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import site
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.config.arguments import WEIGHTS_KEYS
from competition.config.experiment import Experiment
from competition.config.instantiate import TRUSTED_PACKAGES
from competition.config.loading import resolve_config
from competition.errors import MaskfoldError
from competition.io import sha256_of_file
from competition.records import damaged_error, read_record, write_json
from competition.runs.fold import PLAIN_WEIGHTS, SOUP_WEIGHTS

if TYPE_CHECKING:
    import pandas as pd

CONTENTS_FILE = "contents.json"  # file with the `RunRecord` in a run's folder
FOLDS_KEY = "folds"  # key for the digest of the assignment of cases to folds
# Keys for the digests of the predictions and of the weights of the run in `first_stage`.
FIRST_STAGE_PREDICTIONS, FIRST_STAGE_WEIGHTS = "predictions of the first stage", "weights of the first stage"
CODE_PREFIX = "code of "  # prefix of the key for the digest of a package
CODE_SUFFIXES = (".py", ".so", ".pyd")


SECTIONS_WITH_CODE = ("model", "loss", "optimizer", "augment.transforms", "competition.metric")


@dataclass(frozen=True)
class RunRecord:
    """Record the inputs of a run's hash at the time when the run was started.

    Attributes:
        names: the run's hash by both versions of the hash function, with the keys "1" and "2". The name of the run's
            folder starts with one of these hashes.
        data: hash of the cases, see `competition.runs.extra_cases.combined_data_hash`.
        contents: digests of the files and packages that the YAML refers to, see `run_contents`.
        sources: digests of the weights of other runs, from which this run starts or whose predictions it uses as
            pseudo-labels; see `source_digests`.
        tables: digests of the tables that were last written to the run's folder, by file name, see `table_digest`.
            Empty if a process was killed while it wrote the tables.
    """

    names: dict[str, str]
    data: str
    contents: dict[str, str]
    sources: dict[str, str] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> RunRecord | None:
        """Read the record in a run's folder; return None if there is none, because an older version made the run.

        Raises:
            MaskfoldError: the file is damaged.
        """
        path = folder / CONTENTS_FILE
        hint = "Restore the file from a backup, or start another run with --new."
        try:
            plain = read_record(path, hint)
            record = cls(**plain)
            tables = (record.names, record.contents, record.sources, record.tables)
            texts = [record.data, *(text for table in tables for item in table.items() for text in item)]
            if not all(isinstance(text, str) for text in texts) or not record.names.keys() <= {"1", "2"}:
                raise ValueError("it has invalid values")
        except FileNotFoundError:
            return None
        except (TypeError, ValueError, AttributeError) as error:
            raise damaged_error(path, error, hint) from error
        return record

    def write(self, folder: Path) -> None:
        """Write the record to `contents.json` in a run's folder.

        If the folder already has a record, add only new keys to it, and replace `tables`.
        """
        former = RunRecord.read(folder)
        record = self
        if former is not None:
            contents, sources = {**self.contents, **former.contents}, {**self.sources, **former.sources}
            record = RunRecord(former.names, former.data, contents, sources, self.tables)
        if record != former:
            write_json(folder / CONTENTS_FILE, asdict(record))

    def changed_table(self, folder: Path, *, missing_ok: bool = False) -> str | None:
        """Return the name of the first table in a run's folder that differs from the record; None if none differs.

        Args:
            folder: folder of the run.
            missing_ok: whether to treat a table that does not exist as unchanged.
        """
        for name, digest in self.tables.items():
            path = folder / Path(name).name
            if (path.exists() or not missing_ok) and table_digest(path) != digest:
                return name
        return None


# Digests


def table_digest(path: Path) -> str | None:
    """Return the SHA-256 of a CSV file; None if the file cannot be read.

    Windows line ends (CR LF) give the same result as LF.
    """
    try:
        return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
    except OSError:
        return None


def run_contents(exp: Experiment, folds: pd.DataFrame | None, *, missing_ok: bool = False) -> dict[str, str]:
    """Return digests of all files and packages that an experiment names, except the files of the cases.

    Args:
        exp: the experiment.
        folds: table with the columns id and fold; None omits the digest of the folds.
        missing_ok: whether to omit files that do not exist or cannot be read; otherwise they are an error.

    Returns:
        Digests by the following keys:

        - `folds`: the assignment of cases to folds, see `folds_digest`.
        - Dotted keys of the YAML, such as `encoder_weights` or `model.args.weights_file`: the SHA-256 of the file that
          the key names. Weights that a library downloads by name have no digest.
        - `code of NAME`: one of the user's packages, see `package_digest`.

        The digests of a first stage are not included; they come from
        `competition.runs.cascade.first_stage.first_stage_contents`.

    Raises:
        MaskfoldError: a weight file does not exist, or a file cannot be read (status 2). If `missing_ok` is
            True, such a file raises no error.
    """
    contents = {} if folds is None else {FOLDS_KEY: folds_digest(folds)}
    for key, path in _named_files(exp, missing_ok).items():
        try:
            contents[key] = sha256_of_file(path)
        except OSError as error:
            if missing_ok:
                continue
            raise MaskfoldError(
                f"{key}: {path} cannot be read: {error.strerror}.", f"Set {key} to a file that you can read.", status=2
            ) from error
    for package in own_packages(exp):
        if (digest := package_digest(package)) is not None:
            contents[CODE_PREFIX + package] = digest
    return contents


def folds_digest(folds: pd.DataFrame) -> str:
    """Return the SHA-256 of the assignment of cases to folds; the order of the rows does not matter."""
    from competition.data.image_types import combined_digest

    rows = sorted(f"{case_id}\0{fold}" for case_id, fold in zip(folds["id"], folds["fold"], strict=True))
    return combined_digest(row.encode() for row in rows)


def _named_files(exp: Experiment, missing_ok: bool) -> dict[str, Path]:
    """Return the files that the YAML names as weights or as arguments of classes, by dotted key of the YAML.

    Args:
        exp: the experiment.
        missing_ok: whether to omit weight files that do not exist; otherwise they raise a MaskfoldError.
    """
    plain = resolve_config(exp)
    files: dict[str, Path] = {}
    for key in ("encoder_weights", "init_from", *WEIGHTS_KEYS):
        value = exp.initial_weights if key == "init_from" else get_key(plain, key)
        if isinstance(value, str):
            from competition.models.pretrained import find_weights_file

            try:
                path = find_weights_file(value, key if key == "init_from" else "encoder_weights")
            except MaskfoldError:
                if not missing_ok:
                    raise
                path = None
            if path is not None:
                files[key] = path
    for section in SECTIONS_WITH_CODE:
        for key, text in _texts(get_key(plain, section), section):
            if ".args." in key and key not in files and os.path.isfile(text):
                files[key] = Path(text)
    return files


def own_packages(exp: Experiment) -> list[str]:
    """Return the top-level names of the user's packages (see `--trust`) that training and scoring import."""
    plain = resolve_config(exp)
    texts = [pair for section in SECTIONS_WITH_CODE for pair in _texts(get_key(plain, section), section)]
    roots = [text.split(".")[0] for key, text in texts if key.endswith(".target")]
    return [root for root in dict.fromkeys(roots) if root not in TRUSTED_PACKAGES]


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) of each text in nested mappings and lists."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping | list):
        for part, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _texts(item, f"{key}.{part}")


def get_key(plain: Any, key: str) -> Any:
    """Return the value at a dotted key of nested mappings and lists, e.g. `extra.0.weight`; None if there is none."""
    for part in key.split("."):
        if isinstance(plain, list) and part.isdecimal() and int(part) < len(plain):
            plain = plain[int(part)]
        else:
            plain = plain.get(part) if isinstance(plain, Mapping) else None
    return plain


def package_digest(name: str) -> str | None:
    """Return a text that changes when the code of a package changes.

    The package is not imported. It is looked up among the installed packages, then in the working folder, as in
    `competition.config.instantiate.resolve_target`.

    Args:
        name: first part of the import path, e.g. `my_nets` of `my_nets.unet.Fancy`.

    Returns:
        `version …` for a package that pip has installed into the environment's own folder. `sha256 …`, computed from
        the code files, for all other packages, also for editable installations. None if the package does not exist.
    """
    from competition.data.image_types import combined_digest

    importlib.invalidate_caches()  # without this, Python may not find files that were created a moment ago
    spec = _find_package(name)
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not folders and not spec.has_location:
        return None
    files = {path.relative_to(folder).as_posix(): path for folder in folders for path in _code_files(folder)}
    if not folders:
        files[Path(str(spec.origin)).name] = Path(str(spec.origin))
    if (version := _installed_version(name, folders[0] if folders else Path(str(spec.origin)))) is not None:
        return f"version {version}"
    try:
        parts = [part for inner, path in sorted(files.items()) for part in (inner.encode(), path.read_bytes())]
    except OSError:  # the module is in memory, but its file was deleted
        return None
    return f"sha256 {combined_digest(parts)}"


def _find_package(name: str) -> ModuleSpec | None:
    if not name.isidentifier():  # `find_spec` would import the first part of a name with a dot
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a module that code created has no spec
        spec = None
    return spec if spec is not None else PathFinder.find_spec(name, [os.getcwd()])


def _code_files(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield the code files below a folder, also in subpackages that are symbolic links.

    Args:
        folder: folder to search.
        above: resolved paths of the parent folders. Links to these folders are not followed, because that would never
            end.
    """
    above |= {os.path.realpath(folder)}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            if os.path.realpath(path) not in above:
                yield from _code_files(path, above)
        elif path.suffix in CODE_SUFFIXES and path.is_file() and not path.name.startswith("."):
            yield path


def _installed_version(name: str, place: Path) -> str | None:
    """Return the version of a package; None if its code is outside the environment's folders of installed packages.

    Args:
        name: name of the package.
        place: folder or file of its code.
    """
    folders = {sysconfig.get_paths()[key] for key in ("purelib", "platlib")} | {site.getusersitepackages()}
    if not any(place.resolve().is_relative_to(Path(folder).resolve()) for folder in folders):
        return None
    distributions = importlib.metadata.packages_distributions().get(name, [])
    return ", ".join(sorted({importlib.metadata.version(one) for one in distributions})) or None


def source_digests(exp: Experiment) -> dict[str, str]:
    """Return the SHA-256 of each weight file of the other runs that `init_from` and `pseudo.from` name.

    Args:
        exp: the experiment. Its `pseudo.from` must contain folders, see `competition.runs.find.resolve_source_runs`.

    Returns:
        Digests by experiment, hash and file, e.g. `demo2d-unet2d/2cb50ff146c0/fold_0/weights.safetensors`, for all
        folds of these runs that are finished.
    """
    names = [exp.initial_run] if exp.initial_run is not None else []
    names += exp.pseudo.teacher_names if exp.pseudo is not None else []
    return {
        f"{source_name(name)}/{path.parent.name}/{path.name}": sha256_of_file(path)
        for name in names
        for path in sorted(Path(name).glob("*/*.safetensors"))
        # The best weights are not included, because they change while another fold trains.
        if path.name in (PLAIN_WEIGHTS, SOUP_WEIGHTS)
    }


def source_name(folder: str) -> str:
    """Return the last two parts of the path of a run's folder, which stay the same if a parent folder is moved."""
    return "/".join(Path(folder).resolve().parts[-2:])


# Comparison


def check_contents(
    folder: Path, exp: Experiment, contents: Mapping[str, str], sources: Mapping[str, str] | None = None
) -> None:
    """Check that the files and packages that a run refers to have not changed since the run was started.

    A digest is compared only if both the run's record and the arguments contain its key.

    Args:
        folder: the run's folder.
        exp: the experiment, from which the message takes the names of the files.
        contents: present digests, a result of `run_contents`.
        sources: present digests of the weights of other runs, a result of `source_digests`; None to skip them.

    Raises:
        MaskfoldError: a file or package has changed; the message names it.
    """
    if (record := RunRecord.read(folder)) is None:
        return
    for found, recorded in ((contents, record.contents), (sources or {}, record.sources)):
        for key, digest in found.items():
            if recorded.get(key, digest) != digest:
                raise changed_error(folder, describe_content(key, exp))


def changed_error(folder: Path, what: str) -> MaskfoldError:
    """Return the error for a file or package that has changed since a run was started.

    Args:
        folder: the run's folder.
        what: description of the file, with which the message begins.
    """
    return MaskfoldError(
        f"{what} changed after the run {folder} was started, so the scores of old and new folds cannot be compared.",
        "To continue that run, restore the former content. Otherwise, start another run with --new.",
    )


def describe_content(key: str, exp: Experiment) -> str:
    """Return a description, for messages, of the file or package to which a digest belongs.

    Args:
        key: the key of the digest in the result of `run_contents`, `source_digests` or `first_stage_contents`.
        exp: the experiment, which contains the path of the file.
    """
    if key == FOLDS_KEY:
        return f"The fold file {exp.folds.file}" if exp.folds.scheme == "file" else "The folds of the cases"
    if key.startswith(CODE_PREFIX):
        package = key.removeprefix(CODE_PREFIX)
        spec = _find_package(package)
        places = [*(spec.submodule_search_locations or ()), spec.origin] if spec is not None else []
        return f"The code of {package}" + (f" ({places[0]})" if places else "")
    if key in (FIRST_STAGE_PREDICTIONS, FIRST_STAGE_WEIGHTS):
        return f"first_stage: the {key.removesuffix(' of the first stage')} of the run {exp.first_stage}"
    value = get_key(resolve_config(exp), key)
    return f"{key}: the file {value}" if value is not None else f"The weights {key}"


def changed_code(folder: Path, exp: Experiment) -> list[str]:
    """Return a description, for messages, of each user package whose code has changed since a run was started."""
    if (record := RunRecord.read(folder)) is None:
        return []
    found = {CODE_PREFIX + package: package_digest(package) for package in own_packages(exp)}
    return [
        describe_content(key, exp) for key in found if found[key] not in (None, record.contents.get(key, found[key]))
    ]
