"""Predict with averaged checkpoints (soups), and select for a run whether its folds predict with them.

Each fold has plain weights, and a soup: the average of its best checkpoints. Both predict the validation cases. The run
uses the soups if their out-of-fold scores are clearly better (see `compare_soup`), otherwise the plain weights. For the
reported nested score, the weights of each fold are selected on the scores of the other folds only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.config.competition import MetricConfig
from competition.data.splits import HELD_OUT
from competition.io import sha256_of_file
from competition.metrics.bootstrap import bootstrap_interval, cv_score, dice_per_class, paired_gain
from competition.records import finite_or_none, nan_to_none
from competition.runs.fold import PLAIN_WEIGHTS, SOUP_WEIGHTS, FoldJob, FoldResult
from competition.runs.oof import open_store, stored_shapes
from competition.runs.run import Run
from competition.seeding import child_seed
from competition.tables import write_table
from competition.text import format_number

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from competition.training.trainer import Trainer

MAX_BATCHES = 100  # maximum number of batches for estimating the statistics of batch normalisation; at most one epoch
SOUP_PREFIX = FoldResult.prefix_of(SOUP_WEIGHTS)


# The soup of a fold


def predict_with_soup(
    job: FoldJob, run: Run, trainer: Trainer, score: float | None, dice: dict[str, float | None]
) -> dict[str, Any] | None:
    """Average the best checkpoints of a fold (the soup), and write the weights and out-of-fold predictions to disk.

    The written weights are the average of the checkpoints that are best on all validation cases. The written
    predictions come from other averages, so that no case is predicted by checkpoints that it helped to select. Each
    half of the validation cases is predicted with the average of the checkpoints that are best on the other half.

    Args:
        job: the fold.
        run: the run of the fold.
        trainer: trainer of the fold, after the end of training.
        score: score of the plain weights.
        dice: Dice of the plain weights, by class.

    Returns:
        The entry `soup` of `result.json`; None if `training.soup` is 1, or if the fold has no validation cases. Its
        keys are:

        - `epochs`: epochs of the checkpoints in the written weights.
        - `score`, `dice`: score and Dice by class of the written predictions.
        - `plain`: score and Dice of the plain weights.
        - `flattered`: score of the written weights on the validation cases. It is too optimistic, because the same
          cases have selected the checkpoints.
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
    """Write the average of the checkpoints that are best on all validation cases, and load it into the network.

    If the file exists, it is only loaded.
    """
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
    """Join the tables of scores of both halves, and sort the rows in the order of the case ids `ids`."""
    import pandas as pd

    position = {case: number for number, case in enumerate(ids)}
    scores = pd.concat(tables, ignore_index=True)
    return scores.sort_values("id", key=lambda column: column.map(position), kind="stable", ignore_index=True)


def update_bn_statistics(network: nn.Module, trainer: Trainer) -> bool:
    """Estimate the statistics of batch normalisation in a network again, from training batches.

    `torch.optim.swa_utils.update_bn` averages the statistics over batches in training mode, so dropout is active.
    Batches and dropout are seeded. So the same weights get the same statistics in every process.

    Args:
        network: network with averaged weights, on the training device; afterwards it is in evaluation mode.
        trainer: trainer of the fold, after the end of training.

    Returns:
        Whether the network has such statistics; if not, its weights and buffers were not changed.
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
    """Yield batches of augmented training images, (B, C, *patch) float32 on the training device."""
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
    """Return the scores of one fold's validation cases; with several seeds, score the seeds' mean probabilities.

    Args:
        run: the run.
        fold: number of the fold.
        members: results of the finished seeds of the fold.
        weights: the weights that predict: `PLAIN_WEIGHTS` or `SOUP_WEIGHTS`. None for the weights that the results
            select.

    Returns:
        Table with one row per case and class.
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
    """Select the soups or the plain weights for prediction, for all finished folds and seeds of a run.

    The selection is written into each `result.json`, where all code that reads predictions, scores or weights finds it.
    It is the same for all folds and seeds. It may change when more folds are finished.

    Args:
        run: a run with at least one finished fold.

    Returns:
        None if no fold has a soup. Otherwise the result of `compare_soup` with further keys:

        - `k`: value of `training.soup`, the number of checkpoints in a soup.
        - `fewest`: smallest number of checkpoints in any soup. It is below `k` if a time budget ended before `k` epochs
          were validated.
        - `members`: score of the soup of one fold and seed on cases that did not select its checkpoints, averaged over
          folds and seeds.
        - `flattered`: the same for cases that did select its checkpoints, which is too optimistic.
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
    """Compare the scores of soups and plain weights, select one of the two, and estimate the score of this procedure.

    The soups are selected if the 95 % interval of their paired gain over the plain weights lies above 0.

    The score of the selected weights is slightly too optimistic, because they were selected on the same cases. The
    nested score corrects this: the cases are divided into parts, and the weights for each part are selected on the
    cases of all other parts.

    Args:
        plain: scores of the plain weights, one row per case and class.
        soup: scores of the soups for the same cases. No case may be predicted by checkpoints that it helped to select.
        metric: metric of the competition.
        part_of: number of the part of each case, by id: its fold, or its half if there is only one fold.
        seed: seed of the bootstrap.
        groups: group of each case by id. The bootstrap for the intervals draws whole groups. None to draw single cases.

    Returns:
        A dictionary:

        - `plain`, `plain_low`, `plain_high`: score of the plain weights, with its 95 % interval.
        - `soup`, `soup_low`, `soup_high`: score of the soups, with its 95 % interval.
        - `gain`, `low`, `high`: paired gain of the soups over the plain weights, with its 95 % interval.
        - `nested`: the nested score.
        - `chosen`: the parts for which the nested score uses the soups.
        - `parts`: number of parts.
        - `kept`: whether the soups are selected on the scores of all cases.
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
    """Return the 95 % bootstrap interval of a score; (None, None) if fewer than two rows have a score.

    Args:
        scores: table with one row per case and class.
        metric: metric of the competition.
        seed: seed of the bootstrap.
        groups: group of each case by id. The bootstrap for the interval draws whole groups. None to draw single cases.
    """
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
    """Write the selected weights and their scores into the `result.json` of one fold and seed, if they have changed."""
    assert result.soup is not None
    scores = result.soup if soup_is_better else result.soup["plain"]
    weights = SOUP_WEIGHTS if soup_is_better else PLAIN_WEIGHTS
    selected = replace(result, weights=weights, score=scores["score"], dice=scores["dice"])
    if selected != result:
        selected.write(run.member_folder(result.fold, result.seed))


def format_soup(soup: Mapping[str, Any] | None) -> list[str]:
    """Return lines for the user that compare soups and plain weights.

    Args:
        soup: a result of `select_soup`; None gives no lines.
    """
    if soup is None:
        return []
    plain, averaged, nested, members, flattered = (
        format_number(soup[key]) for key in ("plain", "soup", "nested", "members", "flattered")
    )
    gain = format_number(soup["gain"], "+.4f")
    ends = f", 95 % {soup['low']:+.4f} to {soup['high']:+.4f}" if soup["low"] is not None else ""
    fewer = f" (some folds have fewer, at least {soup['fewest']})" if soup.get("fewest", soup["k"]) < soup["k"] else ""
    return [
        (
            f"soup of the {soup['k']} best checkpoints{fewer}: score {averaged} on cases that were not used "
            f"to select them, {plain} with the last weights (gain {gain}{ends}), nested score {nested}"
        ),
        (
            f"  soup of a single network: score {members} on cases that were not used to select its checkpoints, "
            f"{flattered} on cases that were used"
        ),
        "  selected: the soups"
        if soup["kept"]
        else "  selected: the last weights, because the interval of the gain is not entirely above 0",
    ]
