"""The arguments and options that several commands share."""

import sys
from typing import Annotated

import typer

from cluster.terminal.tables import print_json
from sharding.base import environment
from sharding.base.printable import visible

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="settings that win over the file's")
]
Media = Annotated[str | None, typer.Option("--media", help="a folder or URL that the listed videos lie below")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON and nothing else on standard output")]
Config = Annotated[str, typer.Argument(help="a recipe (YAML), e.g. one of configs/")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check everything, print the derived quantities, stop")]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="the Ray cluster to work on, instead of RAY_ADDRESS'"),
]
Detach = Annotated[
    bool, typer.Option("--detach", help="hand the command to the Ray cluster, where it outlives this terminal")
]


def sent_to_cluster(address: str | None, detach: bool, as_json: bool = False) -> bool:
    """Whether this process' command line was handed to the Ray cluster; else the command itself works on `address`.

    Raises UserError for a cluster that does not take it.
    """
    if address:
        environment.use_ray_cluster(address)
    if not detach:
        return False
    from cluster.submission.ray_jobs import RayJobs

    job = RayJobs().submit(sys.argv[1:])
    if as_json:
        print_json({"job": job})
    else:
        print(visible(f"job {job} is handed to the cluster of {environment.ray_address()}"))
        for command in (f"status {job}", f"logs {job} --follow", f"stop {job}"):
            print(visible(f"  reelscale {command} --address {environment.ray_address()}"))
    return True
