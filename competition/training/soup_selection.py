"""Predict the cases of a fold with its soup (averaged checkpoints), and select the soups or the plain weights of a run.

The selection compares out-of-fold scores. For the reported nested score, the selection for each fold uses only the
other folds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.config.competition import MetricConfig
from competition.data.splits import HELD_OUT
from competition.io import finite_or_none, nan_to_none, sha256_of_file, write_table
from competition.metrics.bootstrap import bootstrap_interval, cv_score, dice_per_class, paired_gain
from competition.runs.fold import PLAIN_WEIGHTS, SOUP_WEIGHTS, FoldJob, FoldResult
from competition.runs.oof import open_store, stored_shapes
from competition.runs.run import Run
from competition.seeding import child_seed
from competition.text import format_number

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from competition.training.trainer import Trainer

MAX_BATCHES = 100  # number of batches for estimating the batch statistics; fewer if an epoch is shorter
SOUP_PREFIX = FoldResult.prefix_of(SOUP_WEIGHTS)


# The soup of a fold


def predict_with_soup(
    job: FoldJob, run: Run, trainer: Trainer, score: float | None, dice: dict[str, float | None]
) -> dict[str, Any] | None:
    """Average a fold's checkpoints into a soup, and write the soup's weights and out-of-fold predictions to disk.

    Each half of the validation cases is predicted with the checkpoints that the other half selected, so no case is
    predicted by checkpoints that it helped to select. The written weights are the average of the checkpoints that all
    cases selected.

    Args:
        job: the fold.
        run: the run of the fold.
        trainer: trainer of the fold, after the end of training.
        score: score of the plain weights.
        dice: Dice of the plain weights, per class.

    Returns:
        Entries for `result.json`: `epochs` (of the written weights), `score` and `dice` (each half scored with the
            other half's checkpoints), `plain` (score of the plain weights), and `flattered` (score of the written
            weights on the cases that selected them). None without `training.soup`.
    """
    from competition.training.averaging import ALL_CASES, HALVES

    soup, evaluator = trainer.soup, trainer.evaluator
    if evaluator is None or not soup.enabled:
        return None
    comp, network = run.exp.competition, trainer.unwrapped_model
    half = evaluator.cases["id"].map(soup.half_of)
    shapes = stored_shapes(run.exp, run.cases)
    _write_soup(job.folder / SOUP_WEIGHTS, trainer)  # before the predictions, because they store this file's digest
    digest = sha256_of_file(job.folder / SOUP_WEIGHTS)
    store, tables = open_store(run.exp, job.folder / f"{SOUP_PREFIX}oof", shapes, digest), []
    for scored_half, selecting_half in (HALVES, HALVES[::-1]):
        network.load_state_dict(soup.average(selecting_half))
        update_bn_statistics(network, trainer)
        half_evaluator = replace(evaluator, cases=evaluator.cases[half == scored_half])
        tables.append(half_evaluator.predict_out_of_fold(network, store, job.fold))
    scores = _in_case_order(tables, evaluator.cases["id"])
    write_table(scores, job.folder / f"{SOUP_PREFIX}scores.csv")
    _write_soup(job.folder / SOUP_WEIGHTS, trainer)
    epochs, first_epochs, second_epochs = (soup.epochs(ranking) for ranking in (ALL_CASES, *HALVES))
    same_selection = epochs == first_epochs == second_epochs
    flattered = cv_score(scores if same_selection else evaluator.validate(network, job.fold), comp.metric)
    if len(held_out := run.test_share()):
        test_store = open_store(run.exp, job.folder / f"{SOUP_PREFIX}test", shapes, digest)
        test_scores = replace(evaluator, cases=held_out).predict_out_of_fold(network, test_store, HELD_OUT)
        write_table(test_scores, job.folder / f"{SOUP_PREFIX}test_scores.csv")
    return {
        "epochs": epochs,
        "score": nan_to_none(cv_score(scores, comp.metric)),
        "dice": dice_per_class(scores, comp.classes),
        "flattered": nan_to_none(flattered),
        "plain": {"score": score, "dice": dice},
    }


def _write_soup(path: Path, trainer: Trainer) -> None:
    """Write the average of the checkpoints that score best on all validation cases, and load it into the network."""
    from competition.runs.checkpoint import load_weights, save_weights
    from competition.training.averaging import ALL_CASES

    network = trainer.unwrapped_model
    if not path.exists():
        network.load_state_dict(trainer.soup.average(ALL_CASES))
        update_bn_statistics(network, trainer)
        save_weights(path, network.state_dict())
    load_weights(network, path)
    network.eval()


def _in_case_order(tables: list[pd.DataFrame], ids: pd.Series[str]) -> pd.DataFrame:
    """Return the score rows of both halves in the order of the cases."""
    import pandas as pd

    position = {case: number for number, case in enumerate(ids)}
    scores = pd.concat(tables, ignore_index=True)
    return scores.sort_values("id", key=lambda column: column.map(position), kind="stable", ignore_index=True)


def update_bn_statistics(network: nn.Module, trainer: Trainer) -> bool:
    """Re-estimate a network's batch statistics from the next training batches.

    `torch.optim.swa_utils.update_bn` averages over the batches in training mode, so dropout is active. Batches and
    dropout are seeded, so the same weights get the same statistics in every process.

    Args:
        network: network with the averaged weights, on the training device; afterwards it is in evaluation mode.
        trainer: trainer of the fold, after the end of training.

    Returns:
        False if the network has no batch statistics, so that nothing was changed.
    """
    import torch
    from torch import nn
    from torch.optim.swa_utils import update_bn

    if any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        for module in network.modules()
    ):
        torch.manual_seed(child_seed(trainer.seed, trainer.fold, 0, 1, "soup"))
        with torch.no_grad(), trainer.fabric.autocast():
            update_bn(_training_images(trainer), network)
        network.eval()
        return True
    network.eval()
    return False


def _training_images(trainer: Trainer) -> Iterator[Tensor]:
    """Yield batches of augmented training images (B, C, *patch) on the device."""
    count = min(MAX_BATCHES, trainer.steps_per_epoch * trainer.exp.training.accumulate)
    for batch in itertools.islice(trainer.train_loader(), count):
        if trainer.evaluator is not None:
            trainer.evaluator.should_stop()
        image, mask = trainer.fabric.to_device((batch["image"], batch["mask"]))
        if trainer.augment is not None:
            image, _ = trainer.augment(image, mask, batch["seed"].tolist())
        yield image


# Selection for the whole run


def fold_scores(run: Run, fold: int, members: list[FoldResult], weights: str | None = None) -> pd.DataFrame:
    """Return the scores of one fold's cases; with several members (seeds), score their mean probabilities.

    Args:
        run: the run.
        fold: the fold.
        members: finished members of the run.
        weights: `PLAIN_WEIGHTS` or `SOUP_WEIGHTS`; None: the selected weights.
    """
    folders = [run.member_folder(fold, member.seed) for member in members]
    if len(folders) == 1:
        prefix = members[0].prefix_of(weights or members[0].weights)
        return members[0].read_scores(folders[0], f"{prefix}scores.csv")
    import pandas as pd
    import torch

    from competition.training.evaluator import Evaluator

    oof = run.oof((fold,), weights)
    evaluator = Evaluator(run.exp, oof.cases, {}, torch.device("cpu"), torch.no_grad, lambda: None)
    scores: list[dict[str, Any]] = []
    for row in evaluator.iter_cases():
        scores += evaluator.score(oof.read(row.id), row, fold)[0]
    return pd.DataFrame(scores)


def select_soup(run: Run) -> dict[str, Any] | None:
    """Select the soups or the plain weights for a run's finished folds; write the selection into each `result.json`.

    The selection is the same for all folds and seeds, and may change when folds are added. Code that reads predictions,
    scores or weights of a member uses the selection in its `result.json`.

    Args:
        run: a run with at least one finished fold.

    Returns:
        The entries of `compare_soup`, and: `k`; `fewest` (smallest number of checkpoints in a member's soup, because a
            time budget may end before k are validated); `flattered` (optimistic score on the cases that selected the
            weights, mean over members); `members` (mean over members of the cross-fitted score). None if there is no
            soup.
    """
    import pandas as pd

    members = [result for result in run.results() if result.soup is not None]
    if not members:
        return None
    folds = sorted({member.fold for member in members})
    by_fold = {fold: [member for member in members if member.fold == fold] for fold in folds}
    plain, soup = (
        pd.concat([fold_scores(run, fold, results, weights) for fold, results in by_fold.items()], ignore_index=True)
        for weights in (PLAIN_WEIGHTS, SOUP_WEIGHTS)
    )
    seed = run.exp.seeds[0]
    part_of = {case: fold for case, fold in run.fold_of().items() if fold in by_fold}
    if len(folds) == 1:
        from competition.training.averaging import split_halves

        part_of = split_halves(run.validation_cases(folds[0]), folds[0], seed)
    comparison = compare_soup(plain, soup, run.exp.competition.metric, part_of, seed, run.groups())
    for member in members:
        _write_selection(run, member, comparison["kept"])
    for name, key in (("flattered", "flattered"), ("members", "score")):
        values = [member.soup[key] for member in members if member.soup is not None and member.soup[key] is not None]
        comparison[name] = sum(values) / len(values) if values else None
    fewest = min(len(member.soup["epochs"]) for member in members if member.soup is not None)
    return {"k": run.exp.training.soup, "fewest": fewest, **comparison}


def compare_soup(
    plain: pd.DataFrame,
    soup: pd.DataFrame,
    metric: MetricConfig,
    part_of: Mapping[str, int],
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Compare the scores of soup and plain weights, select one of the two, and estimate the selection's score.

    The soup is selected if the 95 % interval of its paired gain over the plain weights lies above 0. For the nested
    score, the weights of each part are selected on the cases of all other parts.

    Args:
        plain: score rows of the plain weights.
        soup: score rows of the same cases; no case was predicted by checkpoints that it helped to select.
        metric: metric of the competition.
        part_of: part of each case, which is its fold, or its half if there is only one fold.
        seed: seed of the bootstrap.
        groups: the group of each case, for the interval.

    Returns:
        `plain` and `soup` (the scores), each with its 95 % interval (`plain_low`, `plain_high` and so on); `gain`,
        `low` and `high` (the paired gain and its interval); `nested` (the nested score); `chosen` (the parts for which
        the nested score uses the soup); `parts` (number of parts); `kept` (whether the soup is selected on all cases
        together).
    """
    import pandas as pd

    parts = sorted(set(part_of.values()))
    pieces, chosen = [], []
    for part in parts:
        in_plain, in_soup = (table["id"].map(part_of) == part for table in (plain, soup))
        soup_is_better, _ = _soup_is_better(plain[~in_plain], soup[~in_soup], metric, seed, groups)
        pieces.append(soup[in_soup] if soup_is_better else plain[in_plain])
        if soup_is_better:
            chosen.append(part)
    kept, gain = _soup_is_better(plain, soup, metric, seed, groups)
    low, high = map(finite_or_none, gain[1:])
    (plain_low, plain_high), (soup_low, soup_high) = (
        score_interval(table, metric, seed, groups) for table in (plain, soup)
    )
    return {
        "plain": nan_to_none(cv_score(plain, metric)),
        "plain_low": plain_low,
        "plain_high": plain_high,
        "soup": nan_to_none(cv_score(soup, metric)),
        "soup_low": soup_low,
        "soup_high": soup_high,
        "gain": nan_to_none(gain[0]),
        "low": low,
        "high": high,
        "nested": nan_to_none(cv_score(pd.concat(pieces), metric)),
        "chosen": chosen,
        "parts": len(parts),
        "kept": kept,
    }


def score_interval(
    scores: pd.DataFrame, metric: MetricConfig, seed: int, groups: Mapping[str, str] | None
) -> tuple[float | None, float | None]:
    """Return the 95 % interval of a score over cases; (None, None) for fewer than two scored cases."""
    if scores["score"].notna().sum() < 2:
        return None, None
    low, high = bootstrap_interval(scores, metric, seed=seed, groups=groups)
    return finite_or_none(low), finite_or_none(high)


def _soup_is_better(
    plain: pd.DataFrame, soup: pd.DataFrame, metric: MetricConfig, seed: int, groups: Mapping[str, str] | None
) -> tuple[bool, tuple[float, float, float]]:
    gain = paired_gain(plain, soup, metric, seed=seed, groups=groups)
    return bool(gain.low > 0), (gain.value, gain.low, gain.high)


def _write_selection(run: Run, result: FoldResult, soup_is_better: bool) -> None:
    """Write the selected weights and their scores into a member's `result.json`."""
    assert result.soup is not None
    scores = result.soup if soup_is_better else result.soup["plain"]
    weights = SOUP_WEIGHTS if soup_is_better else PLAIN_WEIGHTS
    selected = replace(result, weights=weights, score=scores["score"], dice=scores["dice"])
    if selected != result:
        selected.write(run.member_folder(result.fold, result.seed))


def format_soup(soup: Mapping[str, Any] | None) -> list[str]:
    """Return the lines of a report on the soup; an empty list without a soup."""
    if soup is None:
        return []
    plain, averaged, nested, members, flattered = (
        format_number(soup[key]) for key in ("plain", "soup", "nested", "members", "flattered")
    )
    gain = format_number(soup["gain"], "+.4f")
    ends = f", 95 % {soup['low']:+.4f} to {soup['high']:+.4f}" if soup["low"] is not None else ""
    fewer = f" (in one fold only {soup['fewest']} were validated)" if soup.get("fewest", soup["k"]) < soup["k"] else ""
    return [
        f"soup of the {soup['k']} best checkpoints{fewer}: {averaged} on cases that did not select them, "
        f"{plain} with the last weights (gain {gain}{ends}), {nested} nested",
        f"  soup of one network: {members} on cases that did not select it, {flattered} on those that did",
        "  selected: the soups"
        if soup["kept"]
        else "  selected: the last weights, because the interval of the gain is not above 0",
    ]
