"""The files that a run's YAML refers to: digests of their content for the run's name, and the record of them.

A path in the YAML does not say what is in the file. The name of a run therefore covers the fold of each case, the
content of weight files, and the user's own code (see `competition.runs.run.run_hash`). `contents.json` in the run's
folder records what the name was made of, so that a later command can tell whether one of these files, or the YAML in
the run's folder, has changed since.
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
from competition.io import damaged_error, read_record, sha256_of_file, write_json
from competition.runs.fold import PLAIN_WEIGHTS, SOUP_WEIGHTS

if TYPE_CHECKING:
    import pandas as pd

CONTENTS_FILE = "contents.json"  # in a run's folder: its `RunRecord`
FOLDS_KEY = "folds"  # of the digest of each case's fold
CODE_PREFIX = "code of "  # of the digest of a package
CODE_SUFFIXES = (".py", ".so", ".pyd")
# Further keys that do not change the result; only the hash of version 1 has them. `inference.batch_size` is not one of
# them: on a CPU, with one window at a time, 0.2 to 0.3 % of the probabilities differ in their last bit from those with
# two or more (the networks of experiments/demo2d and demo3d), because libraries choose another way of calculation.
KEYS_OF_VERSION_1 = (("training", "checkpoint_minutes"), ("training", "pictures_every"))
SECTIONS_WITH_CODE = ("model", "loss", "optimizer", "augment.transforms", "competition.metric")


@dataclass(frozen=True)
class RunRecord:
    """What the name of a run was made of when the run was started.

    Attributes:
        names: the run's hash by version, "1" and "2"; its folder has one of them.
        data: the hash of the cases, see `competition.runs.extra_cases.combined_data_hash`.
        contents: digests of what the YAML refers to, see `run_contents`.
        sources: digests of the weights of other runs that this one starts from or learns from, see `source_digests`.
        tables: digests of the tables in the run's folder as they were last written, by file name, see `table_digest`.
            Empty: a process was killed while it wrote them.
    """

    names: dict[str, str]
    data: str
    contents: dict[str, str]
    sources: dict[str, str] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> RunRecord | None:
        """Read the record in a run's folder; None if the run was made before there were records.

        Raises:
            MaskfoldError: the file is damaged.
        """
        path = folder / CONTENTS_FILE
        hint = "Restore it from a backup, or start another run with --new."
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
        """Write the record into a run's folder; except for `tables`, what the folder has recorded before is kept."""
        former = RunRecord.read(folder)
        record = self
        if former is not None:
            contents, sources = {**self.contents, **former.contents}, {**self.sources, **former.sources}
            record = RunRecord(former.names, former.data, contents, sources, self.tables)
        if record != former:
            write_json(folder / CONTENTS_FILE, asdict(record))

    def changed_table(self, folder: Path, *, missing_ok: bool = False) -> str | None:
        """Return the name of the first table in a run's folder that differs from the recorded one; None if all agree.

        Args:
            folder: of the run.
            missing_ok: a table that does not exist has not changed.
        """
        for name, digest in self.tables.items():
            path = folder / Path(name).name
            if (path.exists() or not missing_ok) and table_digest(path) != digest:
                return name
        return None


# Digests


def table_digest(path: Path) -> str | None:
    """Return the SHA-256 of a table's bytes, whatever its line ends; None if the file cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
    except OSError:
        return None


def run_contents(exp: Experiment, folds: pd.DataFrame | None, *, missing_ok: bool = False) -> dict[str, str]:
    """Return digests of what an experiment refers to, besides the cases.

    Args:
        exp: the experiment.
        folds: columns id and fold; None leaves out the folds.
        missing_ok: leave out files that do not exist.

    Returns:
        By key: `folds` for the fold of each case (of a fold file or not); a key of the YAML such as `encoder_weights`
        or `model.args.weights_file` for the SHA-256 of the file that it names; `code of NAME` for a package of the
        user's, see `package_digest`. Weights that a library downloads by their name have no digest.

    Raises:
        MaskfoldError: a weight file does not exist or cannot be read (status 2).
    """
    contents = {} if folds is None else {FOLDS_KEY: folds_digest(folds)}
    for key, path in _named_files(exp, missing_ok).items():
        try:
            contents[key] = sha256_of_file(path)
        except OSError as error:
            if missing_ok:
                continue
            raise MaskfoldError(
                f"{key}: {path} cannot be read: {error.strerror}.", f"Correct {key}.", status=2
            ) from error
    for package in own_packages(exp):
        if (digest := package_digest(package)) is not None:
            contents[CODE_PREFIX + package] = digest
    return contents


def folds_digest(folds: pd.DataFrame) -> str:
    """Return the SHA-256 of the fold of each case; the order of the rows does not count."""
    from competition.data.image_types import combined_digest

    rows = sorted(f"{case_id}\0{fold}" for case_id, fold in zip(folds["id"], folds["fold"], strict=True))
    return combined_digest(row.encode() for row in rows)


def _named_files(exp: Experiment, missing_ok: bool) -> dict[str, Path]:
    """Return the files of weights, and those in the arguments of classes, by their key in the YAML."""
    plain = resolve_config(exp)
    files: dict[str, Path] = {}
    for key in ("encoder_weights", *WEIGHTS_KEYS):
        value = get_key(plain, key)
        if isinstance(value, str):
            from competition.models.pretrained import find_weights_file

            try:
                path = find_weights_file(value)
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
    """Return the user's packages (see `--trust`) that training and scoring import, by the first part of their name."""
    plain = resolve_config(exp)
    texts = [pair for section in SECTIONS_WITH_CODE for pair in _texts(get_key(plain, section), section)]
    roots = [text.split(".")[0] for key, text in texts if key.endswith(".target")]
    return [root for root in dict.fromkeys(roots) if root not in TRUSTED_PACKAGES]


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield the texts in nested mappings and lists, with their dotted keys."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping | list):
        for part, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _texts(item, f"{key}.{part}")


def get_key(plain: Any, key: str) -> Any:
    """Return the value at a dotted key of nested mappings and lists; None if there is none."""
    for part in key.split("."):
        if isinstance(plain, list) and part.isdecimal() and int(part) < len(plain):
            plain = plain[int(part)]
        else:
            plain = plain.get(part) if isinstance(plain, Mapping) else None
    return plain


def package_digest(name: str) -> str | None:
    """Return the version of an installed package, or the SHA-256 of a module's or package's code; None if not found.

    The package is not imported. It is searched where `competition.config.instantiate.resolve_target` finds it: in the
    installed packages, then in the working folder. A package that is installed in editable form counts as the user's.

    Args:
        name: its first part, e.g. `my_nets` of `my_nets.unet.Fancy`.
    """
    from competition.data.image_types import combined_digest

    importlib.invalidate_caches()  # the file may be a moment old
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
    except OSError:  # a module in memory whose file is gone
        return None
    return f"sha256 {combined_digest(parts)}"


def _find_package(name: str) -> ModuleSpec | None:
    if not name.isidentifier():  # `find_spec` imports the first part of a name with a dot
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a module that was made by hand has no spec
        spec = None
    return spec if spec is not None else PathFinder.find_spec(name, [os.getcwd()])


def _code_files(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield the code files below a folder, also of subpackages that are links.

    Args:
        folder: to search.
        above: the real paths of the folders above it; a link to one of them would have no end, and is left out.
    """
    above |= {os.path.realpath(folder)}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            if os.path.realpath(path) not in above:
                yield from _code_files(path, above)
        elif path.suffix in CODE_SUFFIXES and path.is_file() and not path.name.startswith("."):
            yield path


def _installed_version(name: str, place: Path) -> str | None:
    """Return the version of a package in a folder of installed packages; None for code anywhere else."""
    folders = {sysconfig.get_paths()[key] for key in ("purelib", "platlib")} | {site.getusersitepackages()}
    if not any(place.resolve().is_relative_to(Path(folder).resolve()) for folder in folders):
        return None
    distributions = importlib.metadata.packages_distributions().get(name, [])
    return ", ".join(sorted({importlib.metadata.version(one) for one in distributions})) or None


def source_digests(exp: Experiment) -> dict[str, str]:
    """Return the SHA-256 of the weights of the runs in `init_from` and `pseudo.from`.

    Args:
        exp: the experiment; its teachers are folders, see `competition.runs.find.resolve_teachers`.

    Returns:
        By experiment, hash and file, e.g. `demo2d-unet2d/2cb50ff146c0/fold_0/weights.safetensors`. A fold of such a run
        that is finished later adds an entry.
    """
    names = [exp.init_from] if exp.init_from is not None else []
    names += exp.pseudo.teacher_names if exp.pseudo is not None else []
    return {
        f"{source_name(name)}/{path.parent.name}/{path.name}": sha256_of_file(path)
        for name in names
        for path in sorted(Path(name).glob("*/*.safetensors"))
        if path.name in (PLAIN_WEIGHTS, SOUP_WEIGHTS)  # not the best ones, which change while a further fold trains
    }


def source_name(folder: str) -> str:
    """Return the name of another run, wherever its folder is: the last two parts of its path."""
    return "/".join(Path(folder).resolve().parts[-2:])


# The YAML in the hash of version 2


def change_to_version_2(plain: dict[str, Any], saved: dict[str, Any], contents: Mapping[str, str]) -> None:
    """Change the hashed settings of version 1 to those of version 2.

    Args:
        plain: changed in place.
        saved: the whole YAML.
        contents: as from `run_contents`.
    """
    for section, key in KEYS_OF_VERSION_1:
        del plain[section][key]
    for hashed, whole in zip(_with_extras(plain), _with_extras(saved), strict=True):
        comp = hashed["competition"]
        comp.pop("test", None)  # test images that get pseudo-labels are in the data's hash
        comp["submission"] = _settings_of_training_table(whole["competition"])
    if plain["init_from"] is not None:
        plain["init_from"] = source_name(plain["init_from"])
    for key in contents:
        *parents, last = key.split(".")
        parent = get_key(plain, ".".join(parents)) if parents else plain
        if key == FOLDS_KEY:
            plain["folds"].pop("file", None)
        elif isinstance(parent, list) and last.isdecimal() and int(last) < len(parent):
            parent[int(last)] = "a file"
        elif isinstance(parent, dict) and last in parent:
            parent[last] = "a file"


def _with_extras(plain: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the sections with a competition: the YAML itself, and its `extra`."""
    extras = plain.get("extra") or []
    return [plain, *(extras if isinstance(extras, list) else [extras])]


def _settings_of_training_table(comp: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of `submission` that say how a training table of run lengths is read; see data/rle_tables.py."""
    submission, train = comp["submission"], comp["train"]
    if train["rle"] is None:
        return {}
    if submission["profile"] is not None:
        return {"profile": submission["profile"]}
    return {"rle": submission["rle"]} if train["rle_format"] is None else {}


# Comparison


def check_contents(
    folder: Path, exp: Experiment, contents: Mapping[str, str], sources: Mapping[str, str] | None = None
) -> None:
    """Check that what a run refers to has not changed since the run was started.

    Only what both the record and the arguments have is compared.

    Args:
        folder: the run's folder.
        exp: the experiment, for the names of the files.
        contents: as from `run_contents`.
        sources: as from `source_digests`.

    Raises:
        MaskfoldError: something has changed; the message names it.
    """
    if (record := RunRecord.read(folder)) is None:
        return
    for found, recorded in ((contents, record.contents), (sources or {}, record.sources)):
        for key, digest in found.items():
            if recorded.get(key, digest) != digest:
                raise changed_error(folder, describe_content(key, exp))


def changed_error(folder: Path, what: str) -> MaskfoldError:
    """Return the error that a file is no longer the one that a run was started with."""
    return MaskfoldError(
        f"{what} changed after the run {folder} was started, so its folds would not belong together.",
        "Restore the former content to continue that run, or start another run with --new.",
    )


def describe_content(key: str, exp: Experiment) -> str:
    """Return the file or package that a key of `run_contents` or `source_digests` stands for, for messages."""
    if key == FOLDS_KEY:
        return f"The fold file {exp.folds.file}" if exp.folds.scheme == "file" else "The folds of the cases"
    if key.startswith(CODE_PREFIX):
        package = key.removeprefix(CODE_PREFIX)
        spec = _find_package(package)
        places = [*(spec.submodule_search_locations or ()), spec.origin] if spec is not None else []
        return f"The code of {package}" + (f" ({places[0]})" if places else "")
    value = get_key(resolve_config(exp), key)
    return f"{key}: the file {value}" if value is not None else f"The weights {key}"


def changed_code(folder: Path, exp: Experiment) -> list[str]:
    """Return the user's packages whose code has changed since a run was started."""
    if (record := RunRecord.read(folder)) is None:
        return []
    found = {CODE_PREFIX + package: package_digest(package) for package in own_packages(exp)}
    return [
        describe_content(key, exp) for key in found if found[key] not in (None, record.contents.get(key, found[key]))
    ]
