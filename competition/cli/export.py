"""`maskfold export`: words to runs, and the lines at the end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from competition.cli.submit import weights_of
from competition.cli.words import stoppable, words_and_overrides


@stoppable("stopped: no bundle was written")
def export_bundle(
    words: list[str],
    output: Path,
    weights: str | None,
    trust: tuple[str, ...],
    *,
    zipped: bool,
    onnx: bool,
    wheels: bool,
    hours: float,
) -> None:
    """Run the command; see `competition.cli.main.export`."""
    console = Console(highlight=False)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    names, overrides = words_and_overrides(words)
    wanted = weights_of(weights)

    from competition.submission.export.build import Wishes, export
    from competition.training.find import find_run

    runs = [find_run(name, overrides, trust, say) for name in names]
    done = export(runs, output, wanted, trust, Wishes(zipped, onnx, wheels, hours), say)
    say(
        f"{done.folder}: {done.networks} networks, {done.size / 2**20:.1f} MiB; needs {len(done.pins)} packages, listed in "
        "requirements.txt; predicted one patch by itself"
    )
    if done.archive is not None:
        say(f"{done.archive}: {done.archive.stat().st_size / 2**20:.1f} MiB")
    say(f"Next: python {done.folder}/run.py --input {runs[0].exp.competition.root} --output submission.csv")
