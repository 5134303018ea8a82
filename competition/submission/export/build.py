"""From runs to a bundle: a folder that predicts where nothing of this project is installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import competition
from competition.config import MaskfoldError, resolved
from competition.config.load import write_yaml
from competition.config.trust import trusted
from competition.data.readers import known as readable
from competition.data.table import case_table
from competition.inference.weights import read_weights
from competition.submission.blend import Blend, check_same
from competition.submission.expected import Expected
from competition.submission.export import script
from competition.submission.export.code import PACKAGE, needed, own_package
from competition.submission.export.folder import (
    MANIFEST,
    files_in,
    put_copy,
    put_text,
    refuse_overwrite,
    sha256,
    swap,
    zip_beside,
)
from competition.submission.export.notebook import notebook
from competition.submission.export.readme import readme
from competition.submission.export.requirements import Pin, fetch_wheels, pins, trial
from competition.submission.members import checkpoints, plain_rows
from competition.submission.offline.bundle import FILE, FORMAT
from competition.submission.offline.cases import ending_of
from competition.submission.predictor import EXPERIMENT
from competition.submission.profiles import profile_of
from competition.submission.read import open_rows
from competition.submission.submit import plain_weights, settle
from competition.training.checkpoint import write_json
from competition.training.find import LATE
from competition.training.runs import CvRun

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wishes:
    """What a bundle is to hold besides the needful.

    Attributes:
        zipped: also a zip file beside the folder. onnx: the networks as ONNX. wheels: the packages' wheels.
        hours: the time limit that stands in the notebook.
    """

    zipped: bool = False
    onnx: bool = False
    wheels: bool = False
    hours: float = 9.0


@dataclass(frozen=True)
class Exported:
    """A bundle that was written: its folder, bytes, networks, packages, and the zip file if there is one."""

    folder: Path
    size: int
    networks: int
    pins: list[Pin]
    archive: Path | None


def export(
    runs: Sequence[CvRun],
    folder: Path,
    weights: Sequence[float] | str | None = None,
    trust: tuple[str, ...] = (),
    wishes: Wishes = Wishes(),
    say: Say = lambda _: None,
) -> Exported:
    """Writes runs as a bundle. It appears whole or not at all, and has predicted one patch by itself before it does.

    Args:
        runs: finished runs of one competition.
        folder: where; a former bundle there is replaced.
        weights: of the runs; `auto` fits them out of fold; None: equal.
        trust: packages besides the known ones that `target` may name; their files come along.
        wishes: what else it is to hold.
        say: takes lines for the user.

    Raises:
        MaskfoldError: the runs do not belong together, the folder holds something else, or the bundle does not run.
    """
    check_same(runs)
    refuse_overwrite(folder)
    blend = Blend(tuple(runs), plain_weights(weights, len(runs)))
    row, tests = _a_case(blend)
    blend, _, expected = settle(blend, weights, tests or len(runs[0].cases), say)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        about = _fill(beside, blend, expected, trust, wishes, row, say)
        wanted = _packages(beside, blend, row, about, wishes)
        _pages(beside, blend, about, expected, wishes)
        write_json(
            beside / MANIFEST,
            {"files": {path.relative_to(beside).as_posix(): sha256(path) for path in files_in(beside)}},
        )
        swap(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    size = sum(path.stat().st_size for path in files_in(folder))
    networks = sum(one["networks"] for one in about["runs"])
    return Exported(folder, size, networks, wanted, zip_beside(folder) if wishes.zipped else None)


def _a_case(blend: Blend) -> tuple[Any, int]:
    """A row of the case table whose image is there, and the number of test cases (0: not known)."""
    comp = blend.comp
    first: MaskfoldError | None = None
    for split in ("test", "train"):
        try:
            rows = plain_rows(case_table(comp, split)) if split == "train" or comp.test is not None else []
        except MaskfoldError as error:
            first = first or error
            continue
        if rows:
            return rows[0], len(rows) if split == "test" else 0
    raise first or MaskfoldError(
        f"The competition {comp.name} has no image.", "Set competition.root=/path/to/the/data."
    )


def _fill(
    beside: Path, blend: Blend, expected: Expected | None, trust: tuple[str, ...], wishes: Wishes, row: Any, say: Say
) -> dict[str, Any]:
    """Weights, YAMLs and code; returns what bundle.json says, but for the packages."""
    runs = []
    for number, (run, weight) in enumerate(blend.active):
        place = Path("runs") / f"{number}-{run.name}-{run.folder.name}"
        count = _copy_run(run, blend, beside / place)
        if wishes.onnx:
            _copy_onnx(run, beside / place, row, trust, say)
        runs.append(
            {"folder": place.as_posix(), "name": run.name, "hash": run.folder.name, "weight": weight, "networks": count}
        )
    targets = [run.exp.model.target for run, _ in blend.active]
    for path in needed(targets)[0]:
        put_copy(PACKAGE / path, beside / "code" / "competition" / path)
    own = sorted({target.split(".")[0] for target in targets} - trusted())
    for root in own:
        for source, path in own_package(root):
            put_copy(source, beside / "code" / path)
    put_copy(Path(script.__file__), beside / "run.py")
    settings = expected.settings if expected is not None else blend.runs[0].exp.postprocess
    return {
        "format": FORMAT,
        "competition": blend.comp.name,
        "maskfold": competition.__version__,
        "runs": runs,
        "postprocess": settings.model_dump(mode="json"),
        "ending": _ending(blend),
        "trust": own,
        "onnx": wishes.onnx,
        "marks": _marks(blend),
    }


def _copy_run(run: CvRun, blend: Blend, place: Path) -> int:
    """A run's YAML and the weights of its finished members; returns how many."""
    place.mkdir(parents=True)
    plain, first = _without_paths(resolved(run.exp)), _without_paths(resolved(blend.runs[0].exp))
    plain["competition"].update({key: first["competition"][key] for key in LATE})
    write_yaml(plain, place / EXPERIMENT)
    found = checkpoints(run)
    for one in found:
        read_weights(one.path)  # one that is damaged is told by its own name, and not as the copy's
        member = place / run.member_folder(one.fold, one.seed).name
        put_copy(one.path, member / one.path.name)
        put_copy(one.path.parent / "result.json", member / "result.json")
    return len(found)


def _without_paths(plain: dict[str, Any]) -> dict[str, Any]:
    """A resolved experiment without what training alone reads, and without a path of this machine."""
    plain["competition"]["root"] = "."
    plain["run"] = {"accelerator": plain["run"]["accelerator"]}
    for key in ("init_from", "encoder_weights", "study", "pseudo", "extra"):
        plain.pop(key, None)
    for key in ("encoder_weights", "pretrained"):
        if isinstance(plain["model"]["args"].get(key), str):
            plain["model"]["args"][key] = None

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(one) for key, one in value.items()}
        if isinstance(value, list):
            return [named(one) for one in value]
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    return dict(named(plain))


def _copy_onnx(run: CvRun, place: Path, row: Any, trust: tuple[str, ...], say: Say) -> None:
    """The run's networks as ONNX beside their weights."""
    from competition.inference.weights import load_weights
    from competition.model.network import build_network
    from competition.submission.export.onnx import write_onnx
    from competition.submission.members import channels_of
    from competition.submission.offline.onnx import SUFFIX
    from competition.training.runs import CACHE

    channels = channels_of(row, run, CACHE) * (run.exp.patch.slices or 1)
    worst = 0.0
    for one in checkpoints(run):
        network = build_network(run.exp, channels, trust, pretrained=False)
        load_weights(network, one.path)
        member = place / run.member_folder(one.fold, one.seed).name
        worst = max(worst, write_onnx(network, channels, run.exp, member / one.path.with_suffix(SUFFIX).name))
    say(f"{run.name} {run.folder.name} as ONNX: probabilities differ from torch's by {worst:.1g} at most")


def _packages(beside: Path, blend: Blend, row: Any, about: dict[str, Any], wishes: Wishes) -> list[Pin]:
    """requirements.txt, by what one patch imported; completes bundle.json."""
    write_json(beside / FILE, {**about, "requirements": []})
    targets = [run.exp.model.target for run, _ in blend.active]
    named = needed(targets)[1] | {target.split(".")[0] for target in targets}
    root = Path(blend.comp.root)
    imported = trial(beside, root, row, False) | (trial(beside, root, row, True) if wishes.onnx else set())
    found = pins(imported, named)
    about["requirements"] = [{"name": pin.name, "version": pin.version, "modules": list(pin.modules)} for pin in found]
    write_json(beside / FILE, about)
    put_text(beside / "requirements.txt", "".join(f"{pin.line()}\n" for pin in found))
    if wishes.wheels:
        fetch_wheels(found, beside / "wheels")
    return found


def _pages(beside: Path, blend: Blend, about: dict[str, Any], expected: Expected | None, wishes: Wishes) -> None:
    """The notebook and README.md."""
    title = f"{blend.comp.name}: {', '.join(one['name'] + ' ' + one['hash'] for one in about['runs'])}"
    write_json(beside / "notebook.ipynb", notebook(title, wishes.hours))
    said = (
        "Nothing was predicted out of fold, so what it scores is not known."
        if expected is None
        else (f"Out of fold it scores {expected.metric} {expected.score:.4f} on {expected.cases} cases.")
    )
    put_text(
        beside / "README.md",
        readme(title, competition.__version__, "3.11", about["runs"], said, wishes.wheels, wishes.onnx),
    )


def _ending(blend: Blend) -> str:
    """What the host's ids have behind an image's id, as the sample of today shows it."""
    comp = blend.comp
    if comp.submission.sample is None:
        return ""
    path = Path(comp.root) / comp.submission.sample
    if not path.is_file():
        return ""
    ending = ending_of(tuple(row.key for row in open_rows(path, profile_of(comp))[1]))
    return ending if readable(f"x{ending}") else ""


def _marks(blend: Blend) -> list[str]:
    """Files and folders by which the competition's mount is known: the sample, and the folders of the images."""
    comp = blend.comp
    sources = [comp.test.images if comp.test is not None else {}, comp.train.images]
    patterns = [text for one in sources for text in ([one] if isinstance(one, str) else one.values())]
    heads = [text.split("{")[0].rpartition("/")[0] for text in patterns]
    return [mark for mark in dict.fromkeys([comp.submission.sample or "", *heads]) if mark]
