"""Define the options and arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

RUNS_METAVAR = "RUN|KEY=VALUE"
RUN_HELP = (
    "One or more runs, followed by key=value overrides. A run is given by its experiment's YAML (the "
    "latest finished run), its folder or its hash."
)
TrustOption = Annotated[
    list[str] | None,
    typer.Option(help="Name of your own package, from which `target` in the YAML may import; may be repeated."),
]


def _allow_arguments(keys: list[str] | None) -> None:
    if keys:
        from competition.config.arguments import allow_arguments

        allow_arguments(keys)


AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY",
        callback=_allow_arguments,
        help="Allow the argument with this key in the YAML, e.g. model.args.checkpoint_path, to name a file, an "
        "address, a cache or a hub; may be repeated.",
    ),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Values that override keys of the YAML, e.g. folds.run=[0,1]."),
]
CompetitionOverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Values that override keys of the competition's YAML, e.g. root=/data."),
]
