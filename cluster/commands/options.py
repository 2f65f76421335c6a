"""The arguments and options that several commands share."""

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="settings that win over the file's")
]
Media = Annotated[str | None, typer.Option("--media", help="a folder or URL that the listed videos lie below")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON and nothing else on standard output")]
Config = Annotated[str, typer.Argument(help="a recipe (YAML), e.g. one of configs/")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check everything, print the derived quantities, stop")]
