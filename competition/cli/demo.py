"""`maskfold demo`."""

from __future__ import annotations

from pathlib import Path

import typer


def make(name: str, output: Path | None, layout: str | None, seed: int) -> None:
    """Make a demo, or a phantom of a known layout, and say what to type next."""
    if layout is None:
        from competition.data.demo import make_demo

        folder = output or Path("data") / f"demo{name}"
        make_demo(name, folder, seed=seed)
        file = "demo_gate/unet2d" if name == "gate" else f"demo{name}/unet{name}"
        typer.echo(f"{folder}: a {name} competition. Next: maskfold cv experiments/{file}.yaml")
        return
    from competition.data.phantoms import make_phantom, next_command

    folder = output or Path("data") / name
    make_phantom(layout, folder, seed=seed)
    typer.echo(f"{folder}: phantoms in the layout of {layout}. Next: {next_command(layout, folder)}")
