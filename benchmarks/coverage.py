"""Measure how often 95 % intervals contain the true score, for few cases: `python benchmarks/coverage.py`.

Each simulation draws the scores of n cases, of which some fail, computes their interval, and checks whether the
interval contains the true score. The true score is the mean over infinitely many cases; for a prediction interval, it
is the score of a new test set. The coverage is the share of simulations whose interval contains the true score.

The exit status is 1 if an interval of Maskfold covers too rarely: for fewer than 50 cases, its coverage must not lie
more than 2.5 standard errors below 93 % (below 89.3 % in 300 simulations). The scores in `REQUIRED` are checked.

    python benchmarks/coverage.py                      # Maskfold's intervals of several scores
    python benchmarks/coverage.py candidates           # other intervals of the mean of Dice
    python benchmarks/coverage.py --simulations 1000

Scores:

* dice: Dice of good cases has a Beta distribution around 0.9. With probability p, a case fails and has a Dice near 0.
* patients: like `dice`, with three cases for each of n patients. The cases of a patient succeed or fail together.
* classes: three classes, each absent in a third of the cases, with `average: class`. The classes of a case fail
  together.
* global: pixels are counted over all cases (`average: global`). The sizes of the objects are log-normal.
* distance: log-normal distances around 3 mm. A case that fails has 60 to 100 mm. The metric has no largest value.
* test: the prediction interval of Dice for a test set of 30 cases.
* gain: the paired difference of two networks with the same true score, which have four of five failures in common.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm, t

from competition.config.competition import MetricConfig
from competition.metrics.bootstrap import bootstrap_interval, paired_gain, prediction_interval

CASES = (8, 12, 20, 35, 50, 100)
FAILURES = (0.0, 0.05, 0.1, 0.2)
SAMPLES = 1000
MIN_COVERAGE = 0.93
ERROR = 2.5  # number of standard errors by which a simulated coverage may lie below MIN_COVERAGE
REQUIRED = ("dice", "patients", "classes", "global", "test")
GOOD, FAILED = (27.0, 3.0), (1.0, 30.0)  # of the Beta distributions of Dice
TEST_CASES = 30

Floats = NDArray[np.float64]
Generator = np.random.Generator
Ends = tuple[float, float]


def draw_dice(count: int, failed: NDArray[np.bool_], draw: Generator) -> Floats:
    """Draw a random Dice for each of `count` cases: low where `failed` is True, and high elsewhere."""
    return np.where(failed, draw.beta(*FAILED, count), draw.beta(*GOOD, count))


def true_dice(p: float) -> float:
    """Return the expected Dice of a case that fails with probability `p`."""
    return (1 - p) * GOOD[0] / sum(GOOD) + p * FAILED[0] / sum(FAILED)


def table(scores: Floats, **columns: Any) -> pd.DataFrame:
    """Return a score table of one class with a row per case.

    Args:
        scores: score of each case; also used as its Dice.
        **columns: further columns of the table.
    """
    ids = [f"{case:03d}" for case in range(len(scores))]
    return pd.DataFrame({"id": ids, "class": "a", "score": scores, "dice": scores, **columns})


# Simulations: their arguments are number of cases, probability of failure, random generator, and seed of the bootstrap.
# They return the ends of the interval, and the true value.


def dice(n: int, p: float, draw: Generator, seed: int) -> tuple[Ends, float]:
    """Simulate the Dice of n cases; return the interval of the mean Dice, and the true mean."""
    scores = table(draw_dice(n, draw.random(n) < p, draw))
    return bootstrap_interval(scores, MetricConfig(), SAMPLES, seed), true_dice(p)


def patients(n: int, p: float, draw: Generator, seed: int) -> tuple[Ends, float]:
    """Simulate patients with three cases each; return the interval of the mean Dice, and the true mean."""
    scores = table(draw_dice(3 * n, np.repeat(draw.random(n) < p, 3), draw))
    groups = {case: str(index // 3) for index, case in enumerate(scores["id"])}
    return bootstrap_interval(scores, MetricConfig(), SAMPLES, seed, groups), true_dice(p)


def classes(n: int, p: float, draw: Generator, seed: int) -> tuple[Ends, float]:
    """Simulate three classes, each absent in some cases; return the interval of the mean Dice, and the true mean."""
    failed = draw.random(n) < p
    values = [np.where(draw.random(n) < 1 / 3, np.nan, draw_dice(n, failed, draw)) for _ in range(3)]
    scores = pd.concat([table(dice).assign(**{"class": name}) for name, dice in zip("abc", values, strict=True)])
    metric = MetricConfig(average="class", both_empty=None)
    return bootstrap_interval(scores, metric, SAMPLES, seed), true_dice(p)


def global_dice(n: int, p: float, draw: Generator, seed: int) -> tuple[Ends, float]:
    """Simulate n cases; return the interval of the global Dice (pixels counted over all cases), and the true Dice."""
    size = draw.lognormal(7, 0.5, n)
    share = draw_dice(n, draw.random(n) < p, draw)  # if the predicted mask has the true size, Dice is tp / size
    rows = table(share, tp=share * size, fp=(1 - share) * size, fn=(1 - share) * size)
    return bootstrap_interval(rows, MetricConfig(average="global"), SAMPLES, seed), true_dice(p)


def distance(n: int, p: float, draw: Generator, seed: int) -> tuple[Ends, float]:
    """Simulate distances in mm of n cases; return the interval of the mean distance, and the true mean."""
    failed = draw.random(n) < p
    scores = np.where(failed, draw.uniform(60, 100, n), draw.lognormal(np.log(3), 0.6, n))
    mean = (1 - p) * 3 * np.exp(0.6**2 / 2) + p * 80
    return bootstrap_interval(table(scores).assign(dice=0.5), MetricConfig(), SAMPLES, seed), float(mean)


def test(n: int, p: float, draw: Generator, seed: int) -> tuple[Ends, float]:
    """Simulate n cases and a test set; return the prediction interval of the test set's mean Dice, and this mean."""
    scores = table(draw_dice(n, draw.random(n) < p, draw))
    outcome = draw_dice(TEST_CASES, draw.random(TEST_CASES) < p, draw).mean()
    return prediction_interval(scores, MetricConfig(), TEST_CASES, SAMPLES, seed), float(outcome)


def gain(n: int, p: float, draw: Generator, seed: int) -> tuple[Ends, float]:
    """Simulate two equally good networks; return the interval of the paired difference, and the true difference 0."""
    common, own = draw.random(n) < 0.8 * p, draw.random((2, n)) < 0.2 * p
    runs = [table(draw_dice(n, common | failed, draw)) for failed in own]
    result = paired_gain(*runs, MetricConfig(), SAMPLES, seed)
    return (result.low, result.high), 0.0


# Other intervals of the mean of `scores`. Functions that do not draw random numbers ignore `draw`.


def bootstrap_means(scores: Floats, draw: Generator) -> Floats:
    """Draw `SAMPLES` bootstrap samples of the scores, and return the mean of each sample."""
    return np.asarray(scores[draw.integers(0, len(scores), (SAMPLES, len(scores)))].mean(axis=1))


def expanded(scores: Floats, draw: Generator) -> Ends:
    """Return Hesterberg's expanded percentile interval of the mean, which Maskfold uses for 50 or more cases."""
    n = len(scores)
    tail = norm.cdf(np.sqrt(n / (n - 1)) * t.ppf(0.025, n - 1))
    low, high = np.quantile(bootstrap_means(scores, draw), [tail, 1 - tail])
    return float(low), float(high)


def student(scores: Floats, draw: Generator) -> Ends:
    """Return Student's t interval of the mean score."""
    half = t.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / len(scores) ** 0.5
    return float(scores.mean() - half), float(scores.mean() + half)


def bca(scores: Floats, draw: Generator) -> Ends:
    """Return Efron's bias-corrected and accelerated bootstrap interval of the mean score."""
    means, mean, n = bootstrap_means(scores, draw), scores.mean(), len(scores)
    bias = norm.ppf(np.clip(((means < mean).mean() + (means <= mean).mean()) / 2, 0.001, 0.999))
    left_out = (mean - scores) / (n - 1)
    acceleration = -(left_out**3).sum() / (6 * (left_out**2).sum() ** 1.5)
    z = bias + norm.ppf([0.025, 0.975])
    low, high = np.quantile(means, norm.cdf(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def studentised(scores: Floats, draw: Generator) -> Ends:
    """Return the bootstrap-t interval of the mean score."""
    n = len(scores)
    drawn = scores[draw.integers(0, n, (SAMPLES, n))]
    errors = drawn.std(axis=1, ddof=1) / n**0.5
    used = errors > 1e-9
    low, high = np.quantile((drawn.mean(axis=1)[used] - scores.mean()) / errors[used], [0.025, 0.975])
    error = scores.std(ddof=1) / n**0.5
    return float(scores.mean() - high * error), float(scores.mean() - low * error)


def imagined(weight: float) -> Callable[[Floats, Generator], Ends]:
    """Return a function that computes a Bayesian bootstrap interval of the mean with one imagined case.

    The imagined case has Dice 0 for the lower end of the interval, and Dice 1 for the upper end.

    Args:
        weight: weight of the imagined case, where each real case has weight 1. Maskfold uses 1 for few cases.
    """

    def ends(scores: Floats, draw: Generator) -> Ends:
        weights = draw.standard_gamma([1.0] * len(scores) + [weight], (SAMPLES, len(scores) + 1))
        weights /= weights.sum(axis=1, keepdims=True)
        means = weights[:, :-1] @ scores
        return float(np.quantile(means, 0.025)), float(np.quantile(means + weights[:, -1], 0.975))

    return ends


def of_dice(
    interval: Callable[[Floats, Generator], Ends],
) -> Callable[[int, float, Generator, int], tuple[Ends, float]]:
    """Return a simulation like `dice`, in which the function `interval` computes the interval of the mean Dice."""
    return lambda n, p, draw, _: (interval(draw_dice(n, draw.random(n) < p, draw), draw), true_dice(p))


SIMULATIONS: dict[str, dict[str, Callable[[int, float, Generator, int], tuple[Ends, float]]]] = {
    "maskfold": {
        "dice": dice,
        "patients": patients,
        "classes": classes,
        "global": global_dice,
        "distance": distance,
        "test": test,
        "gain": gain,
    },
    "candidates": {
        "expanded": of_dice(expanded),
        "student": of_dice(student),
        "bca": of_dice(bca),
        "studentised": of_dice(studentised),
        "imagined ½": of_dice(imagined(0.5)),
        "imagined 1": of_dice(imagined(1.0)),
    },
}


def main() -> int:
    """Print each interval's coverage and mean width, one line per number of cases and probability of failure.

    Returns:
        The exit status: 1 if a required coverage is not reached, otherwise 0.
    """
    parser = argparse.ArgumentParser(description="Coverage of 95 % intervals.")
    parser.add_argument("what", nargs="?", choices=[*SIMULATIONS], default="maskfold")
    parser.add_argument("--simulations", type=int, default=300)
    parser.add_argument("--cases", type=int, nargs="+", default=list(CASES))
    options = parser.parse_args()
    simulations, runs = SIMULATIONS[options.what], options.simulations
    print("  n    p " + "".join(f"{name:>15}" for name in simulations) + "   covered in %, mean width", flush=True)
    allowed = MIN_COVERAGE - ERROR * (MIN_COVERAGE * (1 - MIN_COVERAGE) / runs) ** 0.5
    missed = []
    for n in options.cases:
        for p in FAILURES:
            line = f"{n:3d} {p:4.2f} "
            for name, simulate in simulations.items():
                covered, width = 0, 0.0
                draw = np.random.default_rng([n, round(100 * p)])
                for run in range(runs):
                    (low, high), truth = simulate(n, p, draw, run)
                    covered += low <= truth <= high
                    width += (high - low) / runs
                line += f"{100 * covered / runs:7.1f} {width:7.3f}"
                if name in REQUIRED and n < 50 and covered < allowed * runs:
                    missed.append(f"{name}, n = {n}, p = {p}: {100 * covered / runs:.1f} %")
            print(line, flush=True)
    print("below the required coverage: " + "; ".join(missed) if missed else "every required coverage is reached")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
