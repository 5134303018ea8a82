"""Compare the scores of training recipes after equal processor time, on several data sets and seeds.

    python benchmarks/accuracy.py --data hippocampus nuclei --minutes 3 8           # takes hours; repeat to resume
    python benchmarks/accuracy.py --data spine --recipes init mine=mine.yaml hand_tuned --seeds 0 1
    python benchmarks/accuracy.py --table                                            # table of the finished folds
    python benchmarks/accuracy.py --data demo2d --small -w /tmp/accuracy             # to check that the script works

Recipes:

- `init`: the experiment that `maskfold init` writes for the data. All other recipes are compared with it.
- `NAME=FILE.yaml`: an experiment of your own.
- the scripts in `benchmarks/rivals/`: `monai_tutorial` and `hand_tuned`.

Each fold runs on one core. All recipes train and predict the same folds. The same code scores their predictions,
without post-processing.

Maskfold's recipes get the minutes as `training.budget_minutes`, which is wall time. A rival, i.e. one of the scripts,
gets processor time instead: as many seconds as the whole command of `init` used for the same fold (start, preparation,
training, prediction and summary). So a busy machine favours neither Maskfold nor the rival.

Each finished fold becomes a line of WORK/rows.jsonl and is not computed again. The table shows the competition's metric
over the cases of all folds and seeds. It also shows the difference to `init`, with a 95 % interval from the paired
differences of the cases.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import pandas as pd
import yaml

from competition.config.competition import Competition
from competition.config.experiment import FoldsConfig
from competition.config.loading import load_competition, load_experiment, resolve_config
from competition.data.cases import case_table
from competition.data.splits import split, write_folds
from competition.datasets.demo import make_demo
from competition.datasets.phantoms import make_phantom, next_command
from competition.io import sha256_of_file
from competition.metrics.bootstrap import cv_score, paired_difference
from competition.metrics.scoring import read_scores

REPOSITORY = Path(__file__).resolve().parents[1]
RIVALS = Path(__file__).resolve().parent / "rivals"
DEFAULT = "init"
DATA = ("hippocampus", "nuclei", "spine", "spleen", "a02025", "hipmri", "demo2d", "demo3d")
DEMOS = {"demo2d": "2d", "demo3d": "3d"}
PHANTOMS = ("spine", "spleen", "a02025", "hipmri")
SPLIT_SEED = 0
SMALL_CASES, SMALL_MINUTES = 8, 0.02
Row = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """Describe a way to train: Maskfold with an experiment, or the script of a rival.

    Attributes:
        name: the recipe's name: `init`, the name of a script in `benchmarks/rivals/`, or a name given by the user.
        experiment: YAML file of the user's experiment; None for `init` and for a rival's script.
    """

    name: str
    experiment: Path | None = None

    @property
    def script(self) -> Path | None:
        """The rival's script; None if Maskfold trains the recipe."""
        path = RIVALS / f"{self.name}.py"
        return path if self.experiment is None and path.exists() else None

    @property
    def digest(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the experiment or script, to notice changes.

        Empty for `init`, because its experiment differs between data sets.
        """
        if self.experiment is not None:
            plain = resolve_config(load_experiment(self.experiment, trust=None))
            return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
        return sha256_of_file(self.script)[:12] if self.script is not None else ""


@dataclass(frozen=True)
class Data:
    """Hold a data set and its split into folds.

    Attributes:
        name: name of the data set, one of `DATA`.
        yaml: YAML file of the competition.
        comp: the competition.
        folds: CSV with the columns id and fold.
    """

    name: str
    yaml: Path
    comp: Competition
    folds: Path


def parse_recipe(text: str) -> Recipe:
    """Return the recipe that a command-line argument names, e.g. `init` or `mine=mine.yaml`.

    Raises:
        SystemExit: the file does not exist, or there is no script with this name.
    """
    name, _, file = text.partition("=")
    recipe = Recipe(name, Path(file) if file else None)
    if recipe.experiment is not None and not recipe.experiment.exists():
        raise SystemExit(f"{text}: {file} does not exist.")
    if recipe.experiment is None and recipe.script is None and name != DEFAULT:
        rivals = sorted(path.stem for path in RIVALS.glob("*.py") if path.stem != "task")
        raise SystemExit(f"Unknown recipe: found {text}, expected {', '.join([DEFAULT, *rivals])} or NAME=FILE.yaml.")
    return recipe


# Data


def open_data(name: str, work: Path, folds: int, small: bool) -> Data:
    """Return a data set and write its folds to a CSV in `work`, if it is not there yet.

    Phantoms and demos are made in `work` if the repository's folder `data` lacks them, or if `small` is set.

    Args:
        name: name of the data set, one of `DATA`.
        work: folder for the CSV of folds and for generated data.
        folds: number of folds into which the cases are split.
        small: whether to generate a data set with only a few cases.
    """
    shipped = REPOSITORY / "experiments" / name / "competition.yaml"
    root = REPOSITORY / "data" / name
    if name in (*DEMOS, *PHANTOMS) and (small or not root.exists()):
        root = work / "data" / name
        if not root.exists():
            make_data(name, root, SMALL_CASES if small else None)
    comp = load_competition(shipped, [f"root={root}"])
    path = work / f"{name}-folds.csv"
    if not path.exists():
        scheme = "group" if comp.group else "kfold"
        write_folds(split(case_table(comp), comp, FoldsConfig(scheme=scheme, k=folds), SPLIT_SEED), path)
    return Data(name, shipped, comp, path)


def make_data(name: str, root: Path, cases: int | None) -> None:
    """Generate a demo or a data set of phantoms in the folder `root`.

    The phantoms of `spleen` are DICOM files. They are converted with the commands that `maskfold demo` prints.

    Args:
        name: name of the data set.
        root: folder of the data.
        cases: number of training cases; None for the usual number. If it is given, there is only one test case.
    """
    few = None if cases is None else 1
    if name in DEMOS:
        make_demo(DEMOS[name], root, cases=cases, test_cases=few)
        return
    make_phantom(name, root, cases=cases, test_cases=None if name == "hipmri" else few)
    if name == "spleen":
        for command in next_command(name, root).split(" && "):
            maskfold(shlex.split(command)[1:], root)


# Runs


def maskfold(words: Sequence[str], folder: Path) -> None:
    """Run Maskfold's command line in a folder, on one thread.

    Raises:
        RuntimeError: the command failed.
    """
    call([sys.executable, "-c", "from competition.cli import main; main()", *words], folder)


def call(command: Sequence[str], folder: Path) -> None:
    """Run a command on one thread.

    Raises:
        RuntimeError: the command failed; the message is the last line that it printed.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **threads, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise RuntimeError(lines[-1])


def run_own(data: Data, recipe: Recipe, minutes: float, seed: int, fold: int, work: Path) -> Row:
    """Train a recipe with Maskfold for `minutes` of wall time, and predict and score the fold's held-out cases.

    Returns:
        The result of the fold: number of training steps, processor and wall seconds, and the scores of the cases.

    Raises:
        RuntimeError: the command failed.
    """
    folder = work / "runs" / f"{data.name}-{recipe.name}-{minutes:g}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    experiment = recipe.experiment.resolve() if recipe.experiment is not None else None
    if experiment is None:
        experiment = folder / "experiments" / data.name / "experiment.yaml"
        if not experiment.exists():
            plan_own(data, minutes, folder, experiment)
    settings = [
        f"competition={data.yaml}",
        f"competition.root={data.comp.root}",
        "folds.scheme=file",
        f"folds.file={data.folds}",
        f"folds.run=[{fold}]",
        f"seed={seed}",
        f"training.budget_minutes={minutes:g}",
        "run.parallel_folds=1",
        "run.threads=1",
        "run.accelerator=cpu",
    ]
    before, start = processor_seconds(), time.time()
    maskfold(["cv", str(experiment), *settings], folder)
    seconds, wall = processor_seconds() - before, time.time() - start
    [result] = folder.glob(f"mlruns/runs/*/*/fold_{fold}/result.json")
    scores = read_scores(result.with_name("scores.csv"))
    steps = json.loads(result.read_text(encoding="utf-8"))["steps"]
    cases = json.loads(scores.to_json(orient="records"))
    return {"steps": steps, "processor_seconds": seconds, "wall_seconds": wall, "cases": cases}


def plan_own(data: Data, minutes: float, folder: Path, experiment: Path) -> None:
    """Write the experiment of the recipe `init`: run `maskfold init`, and plan again with the shipped competition YAML.

    Args:
        data: the data set.
        minutes: training budget in minutes of wall time.
        folder: working directory of the commands.
        experiment: the YAML file that `maskfold init` writes.
    """
    # If `init` recognises several layouts of the data, use the first. The shipped YAML, which has the right layout,
    # replaces the competition's YAML below.
    words = ["init", str(data.comp.root), "--name", data.name, "--layout", "1", "--no-measure"]
    maskfold(words, folder)
    shipped = yaml.safe_load(data.yaml.read_text(encoding="utf-8"))
    text = yaml.safe_dump({**shipped, "root": str(data.comp.root)}, sort_keys=False)
    experiment.with_name("competition.yaml").write_text(text, encoding="utf-8")
    maskfold(["plan", str(experiment), "--minutes", f"{minutes:g}", "--write"], folder)


def run_rival(data: Data, recipe: Recipe, seconds: float, seed: int, fold: int, work: Path) -> Row:
    """Train and predict a fold with a rival's script in `seconds` of processor time.

    Returns:
        The result of the fold, as for `run_own`.

    Raises:
        RuntimeError: the script failed.
    """
    folder = work / "runs" / f"{data.name}-{recipe.name}-{seconds:.0f}s-{seed}-{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    words = {
        "competition": str(data.yaml),
        "root": str(data.comp.root),
        "folds": str(data.folds),
        "fold": fold,
        "seed": seed,
        "seconds": seconds,
        "output": str(folder / "result.json"),
    }
    (folder / "task.json").write_text(json.dumps(words), encoding="utf-8")
    start = time.time()
    call([sys.executable, str(recipe.script), str(folder / "task.json")], folder)
    row: Row = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {**row, "wall_seconds": time.time() - start}


def processor_seconds() -> float:
    """Return the processor seconds of all descendant processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# Rows and table

KEYS = ("data", "recipe", "digest", "minutes", "seed", "fold")


def read_rows(path: Path) -> list[Row]:
    """Return the results of the finished folds; ignore a line that a killed process left incomplete."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def append_row(path: Path, row: Row) -> None:
    """Append the result of a fold to the file of results, on a line of its own, in one write."""
    cut_off = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with open(path, "a", encoding="utf-8") as file:
        file.write(("\n" if cut_off else "") + json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def scores_of(rows: Iterable[Row]) -> pd.DataFrame:
    """Return the scores of all cases of several folds, one row per case, class and seed.

    The column `id` contains case and seed, so that the metric treats a case as a different case for each seed. The
    columns `case` and `seed` contain them separately.
    """
    tables = [pd.DataFrame(row["cases"]).assign(case=lambda t: t["id"], seed=row["seed"]) for row in rows]
    table = pd.concat(tables, ignore_index=True)
    return table.assign(id=table["case"] + "#" + table["seed"].astype(str))


def table_lines(rows: Sequence[Row], comps: dict[str, Competition]) -> list[str]:
    """Return the lines of the result table in Markdown: one row for each data set, number of minutes, and recipe.

    Args:
        rows: results of the finished folds.
        comps: the competition of each data set.
    """
    lines = [
        "| data | minutes | recipe | score | against init (95 %) | better, worse | steps | processor s |",
        "|---|---:|---|---:|---|---|---:|---:|",
    ]
    groups: dict[tuple[str, float], dict[str, list[Row]]] = {}
    for row in rows:
        name = row["recipe"]
        groups.setdefault((row["data"], row["minutes"]), {}).setdefault(name, []).append(row)
    for (data, minutes), recipes in sorted(groups.items()):
        metric = comps[data].metric
        for name in sorted(recipes, key=lambda one: (one != DEFAULT, one)):
            own, versions = recipes[name], {row["digest"] for row in recipes[name]}
            latest = [row for row in own if row["digest"] == own[-1]["digest"]] if len(versions) > 1 else own
            scores = scores_of(latest)
            difference, counts = "", ""
            if name != DEFAULT and DEFAULT in recipes:
                members = {(row["seed"], row["fold"]) for row in latest}
                members &= {(row["seed"], row["fold"]) for row in recipes[DEFAULT]}
                if members:
                    pair = [
                        scores_of([row for row in one if (row["seed"], row["fold"]) in members])
                        for one in (recipes[DEFAULT], latest)
                    ]
                    groups_of_cases = dict(zip(pair[0]["id"], pair[0]["case"]))
                    gain = paired_difference(*pair, "score", metric, groups=groups_of_cases)
                    difference = f"{gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"
                    counts = f"{gain.better}, {gain.worse} of {gain.cases}"
            steps, seconds = (sum(row[key] for row in latest) / len(latest) for key in ("steps", "processor_seconds"))
            lines.append(
                f"| {data} | {minutes:g} | {name} | {cv_score(scores, metric):.4f} | {difference} | {counts} "
                f"| {steps:.0f} | {seconds:.0f} |"
            )
    return lines


def main() -> int:
    """Run the unfinished folds, and print the table; return the exit status, which is 1 if a fold failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA, metavar="NAME")
    parser.add_argument("--recipes", nargs="+", default=[DEFAULT, "monai_tutorial", "hand_tuned"])
    parser.add_argument("--minutes", nargs="+", type=float, default=[3.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--folds", type=int, default=2, help="folds to run; default 2")
    parser.add_argument("--of", type=int, default=5, help="folds that the cases are split into; default 5")
    parser.add_argument("-w", "--work", type=Path, default=Path("accuracy"), help="folder of rows, data and runs")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--small", action="store_true", help=f"{SMALL_CASES} cases, one of two folds, no minutes")
    words = parser.parse_args()
    if words.small:
        words.minutes, words.folds, words.of = [SMALL_MINUTES], 1, 2
    if not 1 <= words.folds <= words.of:
        parser.error(f"--folds: found {words.folds}, expected 1 to {words.of} (--of)")
    work: Path = words.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    # `init` runs first, because the rivals get the processor seconds that it used.
    recipes = sorted(map(parse_recipe, words.recipes), key=lambda recipe: recipe.name != DEFAULT)
    path, failed = work / "rows.jsonl", 0
    rows = read_rows(path)
    done = {tuple(row[key] for key in KEYS): row for row in rows}
    for minutes in () if words.table else words.minutes:
        for name in words.data:
            data = open_data(name, work, words.of, words.small)
            for seed in words.seeds:
                for fold in range(words.folds):
                    for recipe in recipes:
                        key = (name, recipe.name, recipe.digest, minutes, seed, fold)
                        if key in done:
                            continue
                        default = done.get((name, DEFAULT, "", minutes, seed, fold))
                        seconds = default["processor_seconds"] if default is not None else 60 * minutes
                        try:
                            row = (
                                run_rival(data, recipe, seconds, seed, fold, work)
                                if recipe.script is not None
                                else run_own(data, recipe, minutes, seed, fold, work)
                            )
                        except RuntimeError as error:
                            failed += 1
                            print(f"{name}, {recipe.name}, fold {fold}: failed: {error}", flush=True)
                            continue
                        done[key] = {**dict(zip(KEYS, key)), **row}
                        append_row(path, done[key])
                        metric = data.comp.metric
                        score = cv_score(pd.DataFrame(row["cases"]), metric)
                        print(
                            f"{name}, {recipe.name}, {minutes:g} min, seed {seed}, fold {fold}: {score:.4f}", flush=True
                        )
    comps = {
        row["data"]: load_competition(REPOSITORY / "experiments" / row["data"] / "competition.yaml")
        for row in done.values()
    }
    print("\n".join(table_lines(list(done.values()), comps)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
