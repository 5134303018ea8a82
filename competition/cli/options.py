"""Define the options and arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

RUNS_METAVAR = "RUN|KEY=VALUE"
RUN_HELP = (
    "One or more runs, then key=value overrides. A run is an experiment's YAML (its latest finished run), a run's "
    "folder, or its hash."
)
TrustOption = Annotated[
    list[str] | None, typer.Option(help="Allow `target` to name classes of this package of your own; repeatable.")
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
        help="Allow this argument in the YAML to name a file, an address, a cache or a hub, e.g. "
        "model.args.checkpoint_path; repeatable.",
    ),
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Override keys of the YAML, e.g. folds.run=[0,1].")
]
CompetitionOverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Override keys of the competition's YAML, e.g. root=/data."),
]
