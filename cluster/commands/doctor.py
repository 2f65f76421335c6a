"""`reelscale doctor`: is this machine fit, and if not, how is it mended?"""

from dataclasses import asdict
from typing import Annotated

import typer

from cluster.commands.options import Address, AsJson, sent_to_cluster
from cluster.terminal.findings_table import FindingsTable
from cluster.terminal.output import stdout_to_stderr
from cluster.terminal.progress import progress
from cluster.terminal.tables import print_json
from sharding.base.exit_codes import DONE, FAILED


def doctor(
    store: Annotated[
        str | None, typer.Option("--store", metavar="STORE", help="a directory or URL that is to be worked with")
    ] = None,
    run: Annotated[str, typer.Option("--run", metavar="FOLDER", help="where runs are to lie")] = "runs",
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="where metrics are to be served: monitor.port, unless given"),
    ] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, and say of each thing that is wrong how to mend it.

    Versions, GPUs, DeepSpeed and its compilers, FFmpeg, memory, open files, folders, ports, clocks, the exchange of
    tensors between ranks; with --store what a store lets be done, with --address the nodes of a Ray cluster. Nothing is
    changed, and of what is tried in a store nothing stays. It takes up to a minute.

    Exit codes: 0 nothing is wrong (warnings do not count), 1 something is.

    Examples:

      reelscale doctor

      reelscale doctor --store s3://bucket/videos --run /data/runs

      reelscale doctor --address head:6379 --json
    """
    from cluster.jobs.doctor.machine_checks import all_checks, findings

    sent_to_cluster(address, detach=False)
    checks = all_checks(store, port, run)
    results = []
    if as_json:
        with stdout_to_stderr(), progress("checks", len(checks)) as advance:
            for each in findings(checks):
                results.append(each)
                advance(1, each.name)
        print_json([asdict(each) for each in results])
    else:
        table = FindingsTable(max(len(check.name) for check in checks))
        for each in findings(checks, table.begin):
            results.append(each)
            table.add(each.name, each.state, each.what, each.remedy)
        table.end()
    raise typer.Exit(FAILED if any(each.state == "wrong" for each in results) else DONE)
