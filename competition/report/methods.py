"""Write the methods section of a run's HTML report: a text with the settings and scores of the run, and references.

The text can be used as a draft for the methods section of a paper.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from competition import __version__
from competition.config.experiment import LAST_AXIS, Experiment
from competition.errors import MaskfoldError
from competition.inference.tta import count_passes, tta_views
from competition.metrics.bootstrap import FEW_CASES
from competition.records import read_record
from competition.report.html import Table, render
from competition.report.results import RunResults
from competition.runs.fold import PLAIN_WEIGHTS
from competition.runs.imported import IMPORT_FILE, is_imported
from competition.runs.run import Run
from competition.runs.summary import run_scores
from competition.text import format_amount, format_count, join_names, pixel_or_voxel

TEMPLATE = "run.html.j2"
MAX_CLASSES = 6  # maximum number of classes whose Dice the paragraph contains
LIBRARIES = {
    "monai": "MONAI",
    "segmentation_models_pytorch": "segmentation_models_pytorch",
    "timm": "timm",
    "torch": "PyTorch",
    "albumentations": "Albumentations",
}
SCHEMES = {
    "kfold": "random folds",
    "stratified": "folds stratified by the classes of a case and their sizes",
    "group": "folds of whole groups",
    "stratified_group": "stratified folds of whole groups",
    "holdout": "one held-out part",
    "file": "given folds",
}


class Citations:
    """Collect references, and number them in the order in which they are first cited."""

    def __init__(self) -> None:
        self.used: dict[str, str] = {}  # text of each cited reference, and what it is cited for

    def cite(self, key: str, what: str) -> str:
        """Return the citation ` [n]` of a reference; an empty text if there is no reference for the key.

        Args:
            key: key in `references.yaml`, e.g. the import path of a class.
            what: the purpose of the citation, e.g. `network`, for the column `used for` of the table of references.
        """
        text = find_reference(key)
        if text is None:
            return ""
        self.used.setdefault(text, what)
        return f" [{list(self.used).index(text) + 1}]"

    def table(self) -> Table:
        """Return the table of all cited references."""
        rows = [[str(number), what, text] for number, (text, what) in enumerate(self.used.items(), 1)]
        return Table(["number", "used for", "reference"], rows, text_columns=(1, 2))


@cache
def load_references() -> dict[str, str]:
    """Return the texts of all references in `references.yaml`, by key."""
    text = (resources.files("competition.report") / "references.yaml").read_text(encoding="utf-8")
    return {key: entry["text"] for entry in yaml.safe_load(text) for key in entry["keys"]}


def find_reference(key: str) -> str | None:
    """Return the text of the reference for a key, e.g. the import path of a class; None if there is none."""
    references, name = load_references(), key.rpartition(".")[2]
    return references.get(f"{key.split('.')[0]}.{name}") or references.get(name)


def methods_section(results: RunResults) -> Markup:
    """Return the section with the text on methods and the table of references."""
    citations, run = Citations(), results.run
    if is_imported(run.exp):  # its YAML has defaults for the settings of networks, which are unknown
        sentences = [
            [_data(results), _imported(run)],
            [_scores(results, citations), f"Software: Maskfold {__version__}."],
        ]
    else:
        sentences = [
            [_data(results), _folds(run), _preprocessing(run.exp)],
            [_network(run, citations), _training(results, citations), _inference(run.exp)],
            [_scores(results, citations), _software(results, citations)],
        ]
    paragraphs = [" ".join(part for part in parts if part) for parts in sentences]
    return render(TEMPLATE, "methods", paragraphs=paragraphs, table=citations.table())


def _data(results: RunResults) -> str:
    comp, run = results.run.exp.competition, results.run
    channels = len(json.loads(run.cases["images"].iloc[0]))
    kind = "volumes" if comp.dimensions == 3 else "2D images"
    excluded = len(run.skipped)
    text = f"We segmented {join_names(comp.classes)} in {len(run.cases)} {kind} of {comp.name}"
    text += f" with {channels} channels" if channels > 1 else ""
    overlap = "may overlap" if comp.labels == "overlapping" else "exclude each other"
    text += f"; the classes {overlap}." if len(comp.classes) > 1 else "."
    return text + (f" We left out {format_count(excluded, 'unusable case')}." if excluded else "")


def _folds(run: Run) -> str:
    folds, exp = run.fold_numbers(), run.exp
    if not folds:
        return "The network was fitted on all cases, without validation."
    if exp.folds.scheme == "holdout":
        return "The network was validated on a held-out part of the cases."
    text = f"The networks were trained and validated by {len(folds)}-fold cross-validation with "
    text += SCHEMES[exp.folds.scheme]
    together = []
    if exp.competition.group is not None:
        together.append(f"cases of one group ({format_count(run.cases['group'].nunique(), 'group')})")
    together.append("near-duplicate images" if exp.folds.duplicates == "near" else "equal images")
    seeds = f", each with {len(exp.seeds)} random seeds" if len(exp.seeds) > 1 else ""
    return f"{text}{seeds}; {' and '.join(together)} stayed in one fold."


def _imported(run: Run) -> str:
    layout = read_record(run.folder / IMPORT_FILE).get("layout", "unknown")
    folds = format_count(len(run.fold_numbers()), "fold")
    return f"The cases were predicted out of fold in {folds} by networks of another program ({layout})."


def _preprocessing(exp: Experiment) -> str:
    prepare, parts = exp.prepare, []
    if prepare.spacing is not None:
        parts.append(f"resampled to {_numbers(prepare.spacing)} mm")
    if prepare.orientation is not None:
        parts.append(f"turned to {prepare.orientation}")
    if prepare.crop != "none":
        parts.append(f"cropped to the {'nonzero' if prepare.crop == 'nonzero' else 'foreground'} region")
    if prepare.resize is not None:
        parts.append(f"resized to {_numbers(prepare.resize)} pixels")
    if prepare.long_side is not None:
        parts.append(f"resized to a longer side of {prepare.long_side} pixels")
    intensity = {
        "zscore": "normalised to zero mean and unit variance",
        "percentile": f"clipped to the percentiles {_numbers(prepare.percentiles, ' and ')} and normalised to zero "
        "mean and unit variance",
        "window": f"windowed to level and width {_numbers(prepare.window or [], ' and ')}",
        "minmax": "scaled from their range to [0, 1]",
        "none": "",
    }[prepare.intensity]
    parts += [intensity] if intensity else []
    return f"Images were {join_names(parts)}." if parts else ""


def _network(run: Run, citations: Citations) -> str:
    exp, size = run.exp, _weights_count(run)
    target = exp.model.target
    name = target.rpartition(".")[2]
    text = f"The network was {name} of {_library(target)}{citations.cite(target, 'network')}"
    encoder = exp.model.args.get("encoder_name")
    if isinstance(encoder, str):
        text += f" with the encoder {encoder}{citations.cite(_encoder_family(encoder), 'encoder')}"
    text += f" ({size / 1e6:.2f} million weights)" if size else ""
    if exp.init_from is not None:
        source = "another run" if exp.initial_weights is None else f"the weights {exp.initial_weights}"
        text += f", initialised from {source}"
    elif exp.encoder_weights is not None:
        text += f", its encoder initialised with the weights {exp.encoder_weights}"
    else:
        text += ", initialised at random"
    if exp.prepare.boundary is not None:
        text += f"; an edge of {format_count(exp.prepare.boundary, 'pixel')} in each object was a class of its own"
        text += citations.cite("boundary", "boundary class")
    if exp.prepare.rings is not None:
        text += f"; it learned each object as {exp.prepare.rings} rings from its edge to its centre"
        text += citations.cite("rings", "rings")
    if exp.patch.slices is not None:
        text += f"; its input was {exp.patch.slices} neighbouring {_slices(exp)} (2.5D)"
    if exp.first_stage is not None:
        text += (
            "; further input channels were the class probabilities that a first network predicted (a cascade); in "
            "training and validation, each case was predicted by a first network that was not trained on this case"
        )
    return f"{text}."


def _slices(exp: Experiment) -> str:
    """Return the words for the slices of a 2.5D network, e.g. `axial slices`; `slices` if their plane is unknown."""
    axes = exp.patch.axes
    if (planes := exp.slice_planes) is not None:
        return f"{join_names(planes).replace(' and ', ' or ')} slices"
    if axes == [LAST_AXIS]:
        return "slices"
    one = "axis" if len(axes) == 1 else "one of the axes"
    return f"slices along {one} {join_names([str(axis) for axis in axes])} of the volume"


def _training(results: RunResults, citations: Citations) -> str:
    exp = results.run.exp
    training, members, dims = exp.training, results.members, exp.competition.dimensions
    steps, epochs = _range(one.steps for one in members), _range(one.epochs for one in members)
    length = format_count(training.epochs, "epoch")
    if members:
        length = f"{steps} {'step' if steps == '1' else 'steps'} ({epochs} {'epoch' if epochs == '1' else 'epochs'})"
    batch = training.batch_size * training.accumulate * exp.run.devices
    text = (
        f"Each network was trained for {length} on patches of {_numbers(exp.patch.size)} with {batch} patches per step"
    )
    text += f", {100 * exp.patch.foreground:.0f} % of them centred on a foreground {pixel_or_voxel(dims)}, "
    losses = [
        (f"{loss.weight:g} × " if loss.weight != 1 else "")
        + loss.target.rpartition(".")[2]
        + citations.cite(loss.target, "loss")
        for loss in exp.losses
    ]
    rate = exp.optimizer.args.get("lr")
    text += f"with the loss {' + '.join(losses)}, the optimiser {exp.optimizer.target.rpartition('.')[2]}"
    text += citations.cite(exp.optimizer.target, "optimiser")
    details = [f"learning rate {rate:g}"] if isinstance(rate, int | float) else []
    decay = exp.optimizer.args.get("weight_decay")
    details += [f"weight decay {decay:g}"] if isinstance(decay, int | float) else []
    text += f" ({', '.join(details)})" if details else ""
    text += f" and the learning-rate schedule {exp.schedule.name}"
    text += citations.cite(f"schedule {exp.schedule.name}", "learning-rate schedule")
    text += f" with a warm-up of {100 * exp.schedule.warmup:g} %" if exp.schedule.warmup else ""
    sentences = [text]
    if exp.augment.transforms is not None:
        names = list(dict.fromkeys(each.target.rpartition(".")[2] for each in exp.augment.transforms))
        library = exp.augment.transforms[0].target if exp.augment.transforms else ""
        sentences.append(
            f"Patches were augmented with {join_names(names)} of {_library(library)}"
            + citations.cite(library.split(".")[0], "augmentation")
            if names
            else ""
        )
    elif exp.augment.preset != "none":
        library = "albumentations" if exp.network_dimensions == 2 and exp.patch.slices is None else "monai"
        sentences.append(
            f"Patches were augmented at random in shape and brightness (preset {exp.augment.preset}, "
            f"{LIBRARIES[library]}{citations.cite(library, 'augmentation')})"
        )
    if training.ema:
        sentences.append(
            f"The weights were averaged over the steps with a decay of {training.ema:g}"
            + citations.cite("weight average", "averaged weights")
        )
    if training.soup > 1:
        sentences.append(
            f"The {training.soup} checkpoints with the best validation scores were averaged if this improved the score"
            + citations.cite("soup", "averaged checkpoints")
        )
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def _inference(exp: Experiment) -> str:
    text = f"Cases were predicted with windows that overlap by {100 * exp.inference.overlap:g} %"
    passes, views = count_passes(exp), [view for axis in exp.patch.axes for view in tta_views(exp, axis)]
    if len(exp.patch.axes) > 1:
        text += f"; the probabilities from slices along {len(exp.patch.axes)} axes were averaged"
    if passes > len(exp.patch.axes):
        kinds = {"flips": any(view.flips for view in views), "quarter turns": any(view.quarter_turns for view in views)}
        names = join_names([name for name, is_used in kinds.items() if is_used])
        text += f"; the probabilities of {passes} views of the image (test-time augmentation by {names}) were averaged"
    return f"{text}."


def _scores(results: RunResults, citations: Citations) -> str:
    if results.table is None:
        return "There are no out-of-fold scores yet."
    comp, score = results.run.exp.competition, results.score()
    if math.isnan(score.value):
        return "No case has a class in truth or prediction, so there is no score."
    cases = results.table["id"].nunique()
    name = comp.metric.name
    terms: Iterable[Any] = comp.metric.sum or (comp.metric,)
    cited = "".join(citations.cite(term.target or f"metric {term.name}", "metric") for term in terms)
    text = f"On the out-of-fold predictions of {format_count(cases, 'case')}, {name}{cited} was "
    text += f"{score.value:.4f}"
    if not math.isnan(score.low):
        groups = results.run.groups()
        unit = "cases" if groups is None else "groups"
        scored = results.table.loc[results.table["score"].notna(), "id"].unique()
        few = len(scored if groups is None else {groups[case] for case in scored}) < FEW_CASES
        kind = (
            f"Bayesian bootstrap interval over {unit} and one imagined {unit[:-1]}"
            if few
            else (f"bootstrap interval over {unit}")
        )
        cited = citations.cite("few cases" if few else "bootstrap", "interval")
        text += f" (95 % {kind}{cited} {score.low:.4f} to {score.high:.4f})"
    dice = [(cls, results.dice(cls).value) for cls in comp.classes]
    shown = [f"{cls} {value:.4f}" for cls, value in dice if not math.isnan(value)][:MAX_CLASSES]
    if shown:
        more = f" (the first {MAX_CLASSES} classes)" if len(dice) > MAX_CLASSES else ""
        text += f"; the mean Dice{citations.cite('metric dice', 'Dice')} was {join_names(shown)}{more}"
    try:
        submitted = run_scores(results.run)
    except MaskfoldError:
        submitted = None
    if submitted is not None and submitted.is_nested:
        text += f". With post-processing tuned on the other folds, {name} was {submitted.value:.4f}"
    elif submitted is not None and submitted.processed is not None:
        text += f". With post-processing, {name} was {submitted.value:.4f}"
    return f"{text}."


def _software(results: RunResults, citations: Citations) -> str:
    members = results.members
    versions = join_names(list(dict.fromkeys(one.torch for one in members))) or _version("torch")
    devices = join_names(
        list(dict.fromkeys(f"{one.device} ({one.precision.replace('32-true', 'fp32')})" for one in members))
    )
    minutes = sum(one.minutes for one in members)
    text = f"Software: Maskfold {__version__}, PyTorch {versions}{citations.cite('torch', 'software')}"
    text += f"; training took {format_amount(minutes, 'minute', '.0f')} on {devices}" if members else ""
    return f"{text}."


def _weights_count(run: Run) -> int:
    """Return the number of values in a weight file of a run; 0 if no weight file can be read."""
    from safetensors import SafetensorError, safe_open

    for member in run.possible_members():
        path: Path = run.member_folder(*member) / PLAIN_WEIGHTS
        if path.exists():
            try:
                with safe_open(path, "np") as file:
                    return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
            except (OSError, SafetensorError):
                continue
    return 0


def _library(target: str) -> str:
    root = target.split(".")[0]
    version = _version(root)
    return f"{LIBRARIES.get(root, root)}{f' {version}' if version else ''}"


def _version(package: str) -> str:
    try:
        return metadata.version(package.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return ""


def _encoder_family(name: str) -> str:
    """Return the key of an encoder in `references.yaml`: `encoder` and the first word of its name, without digits.

    For example, `resnet34` gives `encoder resnet`.
    """
    plain = name.removeprefix("tu-").replace("timm-", "").replace("_", "-").lower()
    letters = "".join(letter if letter.isalpha() else " " for letter in plain).split()
    return f"encoder {letters[0]}" if letters else ""


def _numbers(values: Iterable[Any], between: str = " × ") -> str:
    return between.join(f"{value:g}" for value in values)


def _range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return "" if not found else str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
