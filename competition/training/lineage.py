"""Record the lineage of a network: all cases on which the network was trained, directly or through other networks.

A fold may train on images with pseudo-labels that other networks predicted, and may start from the weights of another
network (`init_from`). The lineage of the fold then includes the training cases of these other networks. The fold must
not validate any case of its lineage, because its score would be too high.

If no other network is involved, the lineage follows from `cases.csv` and `folds.csv`. Otherwise, the complete lineage
is stored in `lineage.json` in the fold's folder, so that it stays known if the other runs are deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from competition.config.experiment import WEIGHTS_SUFFIXES
from competition.context import Context
from competition.data.splits import HELD_OUT
from competition.errors import MaskfoldError
from competition.io import sha256_of_file
from competition.records import parse_json_object, write_json
from competition.runs.extra_cases import same_competition
from competition.runs.fold import PLAIN_WEIGHTS, RESULT_FILE, FoldJob, exchanged_error
from competition.runs.imported import refuse_imported
from competition.runs.run import FOLDS_FILE, RUN_NAME, Run, load_run
from competition.text import join_or

LINEAGE_FILE = "lineage.json"
RESTORE_HINT = "Restore the file from a backup. No other file records on which cases the network was trained."
# How a network used its cases. Files and error messages contain these texts.
BY_LABELS = "trained on"
BY_PSEUDO_LABELS = "taught pseudo-labels of"
BY_EXTRA_CASES = "trained on another competition's"
MAX_SHOWN = 8  # maximum number of leaks in an error message


@dataclass(frozen=True)
class TrainingCases:
    """Hold one entry of a network's lineage: cases that were used in the same way, e.g. with pseudo-labels.

    Attributes:
        how: how the cases were used: `BY_LABELS`, `BY_PSEUDO_LABELS` or `BY_EXTRA_CASES`.
        competition: name of the competition to which the cases belong.
        root: folder of this competition's data at the time of the training.
        cases: (id, group, SHA-256 of the image) of each case.
        chain: empty if this network itself was trained on the cases. Otherwise, another network was trained on them,
            and the chain leads from this network to that one. Each element is a text that names a network and how it
            influenced the network before it, e.g. `started from name/hash/fold_0`.
        weight: how often training drew a case, relative to a labelled case.
    """

    how: str
    competition: str
    root: str
    cases: tuple[tuple[str, str, str], ...]
    chain: tuple[str, ...] = ()
    weight: float = 1.0

    @classmethod
    def from_table(cls, how: str, run: Run, table: Any, weight: float = 1.0, comp: Any = None) -> TrainingCases:
        """Return the cases in a case table as `TrainingCases`.

        Args:
            how: `BY_LABELS`, `BY_PSEUDO_LABELS` or `BY_EXTRA_CASES`.
            run: the run that is trained on the cases.
            table: the case table.
            weight: how often training draws a case, relative to a labelled case.
            comp: the competition of the cases; None for the competition of the run.
        """
        comp = comp or run.exp.competition
        hashes = table["image_hash"] if "image_hash" in table.columns else [""] * len(table)
        rows = tuple(
            (str(case), str(group), str(image))
            for case, group, image in zip(table["id"], table["group"], hashes, strict=True)
        )
        return cls(how, comp.name, str(comp.root), rows, weight=weight)


@dataclass(frozen=True)
class Leak:
    """Describe a leak: cases on which a network was trained, although a fold validates them.

    Attributes:
        member: name of the network, e.g. `hippocampus-unet3d/2cb50ff146c0/fold_0`.
        source: entry of the network's lineage that contains the leaked cases.
        cases: (id, reason) of each leaked case in `source`. If the fold validates the case itself, the reason is empty.
            Otherwise, it is a text for the message, e.g. that the fold validates another case with the same image.
    """

    member: str
    source: TrainingCases
    cases: list[tuple[str, str]]

    def __str__(self) -> str:
        chain = "".join(f" {step}, which was" for step in self.source.chain)
        case, reason = self.cases[0]
        more = f" and {len(self.cases) - 1} more" if len(self.cases) > 1 else ""
        return f"{self.member} was{chain} {self.source.how} {case}{reason}{more}"


@dataclass
class HeldOutCases:
    """Hold the cases that must not be in the lineage of a fold: its validation cases, and those held out for a test.

    Args:
        run: the run.
        fold: number of the fold; -1 for the training on all cases, which has no held-out cases.

    Attributes:
        ids: ids of the cases.
        units: groups of the cases; all cases of these groups are treated as held out.
        hashes: SHA-256 of the images of the cases.
    """

    run: Run
    fold: int
    ids: set[str] = field(init=False)
    units: set[str] = field(init=False)
    hashes: set[str] = field(init=False)

    def __post_init__(self) -> None:
        folds, cases = self.run.folds, self.run.cases
        held_out = folds["fold"].isin([self.fold, HELD_OUT]) & (self.fold >= 0)
        self.ids = set(folds.loc[held_out, "id"])
        self.units = set(folds.loc[held_out, "group"]) | set(cases.loc[cases["id"].isin(self.ids), "group"])
        self.hashes = (
            set(cases.loc[cases["id"].isin(self.ids), "image_hash"]) if "image_hash" in cases.columns else set()
        )
        # If two groups of the case table contain the same image, they form one group in the table of folds. If such a
        # group is held out, all its groups in the case table are held out.
        unit_of = dict(zip(folds["id"], folds["group"], strict=True))
        self.units |= {
            group for case, group in zip(cases["id"], cases["group"], strict=True) if unit_of.get(case) in self.units
        }
        self.unit_of = unit_of
        self.image_of = (
            dict(zip(cases["id"], cases["image_hash"], strict=True)) if "image_hash" in cases.columns else {}
        )

    def overlaps(self, source: TrainingCases) -> list[tuple[str, str]]:
        """Return (id, reason) of each training case in `source` that is held out or would reveal a held-out case.

        The reason is a text for the message. It is empty if the case itself is held out. Otherwise it states that the
        image is the same as that of a held-out case, or that the case belongs to a held-out group.
        """
        if not self.ids:
            return []
        same = same_competition(self.run.exp.competition, source.competition, source.root)
        other_ids = [case for case, _, _ in source.cases if case not in self.unit_of]
        groups = self._groups_of(other_ids) if same else {}
        overlaps = []
        exp = self.run.exp
        may_repeat_ids = exp.competition.group is None and (exp.pseudo is None or exp.pseudo.images is None)
        for case, group, image in source.cases:
            # A test image with a pseudo-label may have the id of a labelled case by chance.
            is_other = source.how == BY_PSEUDO_LABELS and image and self.image_of.get(case, image) != image
            counts = same and not (may_repeat_ids and is_other)
            if counts and case in self.ids:
                overlaps.append((case, ""))
            elif image and image in self.hashes:
                overlaps.append((case, " (the same image as a case that the fold validates)"))
            elif counts and (unit := self.unit_of.get(case, groups.get(case, group))) in self.units:
                overlaps.append((case, f" (of the group {unit}, which the fold validates)"))
        return overlaps

    def _groups_of(self, ids: list[str]) -> dict[str, str]:
        """Return the groups that cases of another run have according to this run's group rule, by id.

        If the competition has no group rule, return an empty dictionary.
        """
        from competition.data.splits import known_groups

        return known_groups(self.run.exp.competition, ids) if ids and self.run.exp.competition.group is not None else {}


def member_name(run: Run, fold: int, seed: int) -> str:
    """Return the name of the network of one fold and seed, e.g. `hippocampus-unet3d/2cb50ff146c0/fold_0`."""
    return f"{run.full_name}/{run.member_folder(fold, seed).name}"


def training_cases(run: Run, fold: int, seed: int, context: Context = Context()) -> list[TrainingCases]:
    """Return all cases on which the network of a fold and seed was trained.

    Args:
        run: the run of the network.
        fold: number of the fold; -1 for the training on all cases.
        seed: index of the seed in the experiment's list of seeds.
        context: context with the trusted packages.

    Returns:
        The training cases of this network, and of all networks that have influenced it.

    Raises:
        MaskfoldError: `lineage.json` is damaged or was changed after the fold finished, or it is missing although the
            run uses additional data.
    """
    path, name = run.member_folder(fold, seed) / LINEAGE_FILE, member_name(run, fold, seed)
    if path.exists():
        result = run.result(fold, seed)
        expected = None if result is None else result.digests.get(LINEAGE_FILE)
        if expected is not None and sha256_of_file(path) != expected:
            raise MaskfoldError(
                f"{path} was changed after the fold had finished: its checksum differs from that in {RESULT_FILE}.",
                RESTORE_HINT,
            )
        return _read(path)
    if run.exp.pseudo is not None or run.exp.extras:
        raise MaskfoldError(
            f"{name} was trained on additional data, but {LINEAGE_FILE}, the list of these data, is missing.",
            RESTORE_HINT,
        )
    return [labelled_cases(run, fold), *initial_weights_cases(run, fold, context)]


def labelled_cases(run: Run, fold: int) -> TrainingCases:
    """Return the labelled cases on which a fold of a run trains."""
    return TrainingCases.from_table(BY_LABELS, run, run.cases[run.cases["id"].isin(run.training_ids(fold))])


def initial_weights_cases(run: Run, fold: int, context: Context = Context()) -> list[TrainingCases]:
    """Return the training cases of the network from whose weights a fold starts; empty if `init_from` names no run."""
    if run.exp.initial_run is None:
        return []
    source_run = load_run(Path(run.exp.initial_run), context.trust)
    return cases_via("started from", source_run, fold, 0, context)


def cases_via(how: str, run: Run, fold: int, seed: int, context: Context = Context()) -> list[TrainingCases]:
    """Return the training cases of one network, as part of the lineage of a second network that the first influenced.

    Args:
        how: how the first network has influenced the second, e.g. `started from`. This text and the name of the first
            network become the first entry of each `chain`.
        run: the run of the first network.
        fold: number of the fold of the first network; -1 for the training on all cases.
        seed: index of the seed of the first network.
        context: context with the trusted packages.
    """
    step = f"{how} {member_name(run, fold, seed)}"
    return [replace(source, chain=(step, *source.chain)) for source in training_cases(run, fold, seed, context)]


def find_leaks(member: str, sources: Iterable[TrainingCases], protected: HeldOutCases) -> list[Leak]:
    """Return a `Leak` for each entry of a network's lineage that includes held-out cases.

    Args:
        member: name of the network.
        sources: lineage of the network.
        protected: the held-out cases of a fold.
    """
    return [Leak(member, source, cases) for source in sources if (cases := protected.overlaps(source))]


def format_leaks(all_leaks: Sequence[Leak]) -> str:
    """Return the leaks as text for an error message: one line for each of the first `MAX_SHOWN` leaks."""
    lines = [f"\n  {leak}" for leak in all_leaks[:MAX_SHOWN]]
    more = f"\n  … and {len(all_leaks) - MAX_SHOWN} more" if len(all_leaks) > MAX_SHOWN else ""
    return "".join(lines) + more


def check_initial_weights(source: Path, job: FoldJob, run: Run) -> Path:
    """Check the run from whose weights a fold starts, and return the weight file to start from.

    Args:
        source: folder of the other run, whose weights are used.
        job: the fold.
        run: the run of the fold.

    Returns:
        The weight file of the same fold in the other run. For the training on all cases (fold -1), the weight file of
        the other run's training on all cases.

    Raises:
        MaskfoldError: `source` is a file, or the folder of an imported run; or the weights do not exist, were changed
            after the source's fold finished, or were trained on a case that this fold validates.
    """
    if source.is_file():
        raise MaskfoldError(
            f"init_from: found the file {source}, expected a run's folder or a file that ends in "
            f"{join_or(WEIGHTS_SUFFIXES)}.",
            "If the file contains weights, give it one of these endings.",
            status=2,
        )
    source_run = load_run(source, job.trust)
    refuse_imported([source_run], "be the start of a training (init_from)")
    weights = source_run.member_folder(job.fold, 0) / PLAIN_WEIGHTS
    if not weights.exists():
        raise MaskfoldError(
            f"init_from: {weights} does not exist.", "Finish the fold of that run first, or name another run."
        )
    # The lineage that is checked below is that of the weights with which the other fold finished. So check first that
    # the file still contains these weights.
    result = source_run.result(job.fold, 0)
    expected = None if result is None else result.digests.get(PLAIN_WEIGHTS)
    if expected is not None and sha256_of_file(weights) != expected:
        raise exchanged_error(weights)
    member = member_name(source_run, job.fold, 0)
    if all_leaks := find_leaks(
        member, training_cases(source_run, job.fold, 0, Context(job.trust)), HeldOutCases(run, job.fold)
    ):
        raise MaskfoldError(
            f"init_from: {member} was trained on cases that fold {job.fold} validates, so the scores of "
            f"this fold would be too good:{format_leaks(all_leaks)}.",
            "Use the same folds in both runs: set folds.scheme=file, and a folds.file with the folds in "
            f"{source_run.folder / FOLDS_FILE}.",
            status=2,
        )
    return weights


def write_lineage(folder: Path, sources: Sequence[TrainingCases], summary: dict[str, Any]) -> None:
    """Write the `lineage.json` of a fold: a summary of its additional training data, and all its training cases.

    Args:
        folder: the fold's folder.
        sources: the lineage.
        summary: the summary, as plain data for JSON.
    """
    write_json(
        folder / LINEAGE_FILE,
        {
            **summary,
            "sources": [
                {
                    "how": source.how,
                    "competition": source.competition,
                    "root": source.root,
                    "chain": list(source.chain),
                    "weight": source.weight,
                    "cases": [list(case) for case in source.cases],
                }
                for source in sources
            ],
        },
    )


def read_lineage_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary in the `lineage.json` of a fold's folder; None if the file does not exist."""
    path = folder / LINEAGE_FILE
    if not path.exists():
        return None
    return {key: value for key, value in _load(path).items() if key != "sources"}


def _read(path: Path) -> list[TrainingCases]:
    try:
        return [
            TrainingCases(
                source["how"],
                source["competition"],
                source["root"],
                tuple((case[0], case[1], case[2]) for case in source["cases"]),
                tuple(source["chain"]),
                source["weight"],
            )
            for source in _load(path)["sources"]
        ]
    except (LookupError, TypeError) as error:
        raise MaskfoldError(f"{path} is damaged: {type(error).__name__}: {error}.", RESTORE_HINT) from error


def _load(path: Path) -> dict[str, Any]:
    try:
        return parse_json_object(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MaskfoldError(f"{path} cannot be read: {error}.", RESTORE_HINT) from error


# The origin of a checkpoint


def checkpoint_origin(folder: Path, fold: int, seed: int) -> dict[str, Any]:
    """Return data that identify the training to which a checkpoint belongs: name of the run, fold and seed.

    Args:
        folder: the fold's folder, in the run's folder.
        fold: number of the fold.
        seed: the seed itself, not its index in the experiment's list of seeds.
    """
    return {"run": folder.parent.name, "fold": fold, "seed": seed}


def check_origin(found: Any, expected: dict[str, Any], path: Path) -> None:
    """Check that the run, fold and seed that a checkpoint records are the expected ones.

    A checkpoint of another fold must not be used, because its network was trained on cases that this fold validates.

    Args:
        found: the result of `checkpoint_origin` that the checkpoint contains; None if an older version wrote the
            checkpoint without it.
        expected: the result of `checkpoint_origin` for this fold.
        path: path of the checkpoint.

    Raises:
        MaskfoldError: the checkpoint belongs to another run, fold or seed.
    """
    if found is None:
        return
    if not isinstance(found, dict):
        found = {}
    names = (str(found.get("run")), expected["run"])
    if not all(RUN_NAME.fullmatch(name) for name in names):  # the folder was renamed
        found, expected = ({**origin, "run": ""} for origin in (found, expected))
    if found != expected:
        before, now = (
            f"fold {origin.get('fold')} with seed {origin.get('seed')}"
            + (f" of the run {name}" if origin.get("run") else "")
            for origin, name in zip((found, expected), names, strict=True)
        )
        raise MaskfoldError(
            f"The checkpoint {path} belongs to {before}, expected {now}.",
            f"Restore the checkpoint of this fold. To train this fold from the beginning, delete {path.parent}.",
        )
