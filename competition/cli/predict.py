"""`maskfold predict`: the images of a folder to label files."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from competition.cli.progress import watcher
from competition.cli.words import stoppable, words_and_overrides


@stoppable("stopped: the files written so far are whole")
def predict_folder(words: list[str], images: Path, output: Path, pictures: int, trust: tuple[str, ...]) -> None:
    """Run the command; see `competition.cli.main.predict`."""
    console = Console(highlight=False)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    names, overrides = words_and_overrides(words)

    from competition.submission.folder import predict_images
    from competition.training.find import find_run

    runs = [find_run(name, overrides, trust, say) for name in names]
    done = predict_images(runs, images, output, trust, progress=watcher(console), pictures=pictures)
    unit = "voxels" if runs[0].exp.competition.dimensions == 3 else "pixels"
    for one in done[:5]:
        counts = ", ".join(f"{name} {count:,}" for name, count in one.pixels.items())
        say(f"{one.files[0]}: {unit} of {counts}")
    say(
        f"{len(done)} cases, {sum(len(one.files) for one in done)} files in {output}"
        + (f"; pictures of {min(pictures, len(done))} in {output / 'pictures'}" if pictures else "")
    )
