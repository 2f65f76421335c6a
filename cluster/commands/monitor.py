"""`reelscale monitor`: Prometheus and Grafana for runs and sharding, and which alerts fire."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.commands.options import AsJson, named, with_options
from cluster.monitor.prometheus.scrape_config import ScrapeSettings
from cluster.terminal.tables import print_json, print_table
from sharding.base.printable import visible
from sharding.base.settings import validate

monitor = typer.Typer(
    help="Watch runs and sharding by Prometheus and Grafana, or ask which alerts fire.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_PORT = 9090


@monitor.command()
@with_options(ScrapeSettings)
def up(
    folder: Annotated[Path, typer.Option("--folder", help="where all is written, and scraped data kept")] = Path(
        "monitoring"
    ),
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="TCP port of Prometheus, on loopback")] = _PORT,
    prometheus: Annotated[
        str | None, typer.Option("--prometheus", metavar="PATH", help="the server; the installed one unless named")
    ] = None,
    write_only: Annotated[bool, typer.Option("--write-only", help="write the files, and start nothing")] = False,
    **options: Any,
) -> None:
    """Start Prometheus for everything that Reelscale does on this machine, until Ctrl-C.

    Writes its configuration, recording and alerting rules, and Grafana's provisioning with four dashboards (run, data,
    sharding, cluster). Runs and sharding are found by the files that they put into a folder, as they start and end.
    What each alert means and what to do about it: cluster/OPERATIONS.md.

    Exit codes: 75 stopped by Ctrl-C (what was scraped is kept), 1 the server failed.

    Examples:

      reelscale monitor up

      reelscale monitor up --target node7:9480 --target node8:9480 --token-file token --port 9091

      reelscale monitor up --kubernetes training --folder /etc/reelscale-monitoring --write-only
    """
    from cluster.monitor.prometheus import server
    from cluster.monitor.prometheus.monitoring_folder import write_folder
    from cluster.monitor.targets import targets_folder

    settings = validate(ScrapeSettings, named(options, ScrapeSettings), "the options")
    program = "prometheus"
    if not write_only:
        program = server.find_program(prometheus)
        server.require_free(port)
    url = server.loopback_url(port)
    written = write_folder(folder, settings, url)
    rows = {
        "targets": f"{targets_folder(settings.targets)}/*.json",
        "Grafana": f"GF_PATHS_PROVISIONING={written.provisioning} grafana server --homepath /usr/share/grafana",
    }
    if write_only:
        command = " ".join(server.server_command(program, written, port))
        print_table(f"monitoring is written to {written.path}", {"Prometheus": command, **rows})
        return
    with server.running_server(program, written, port) as process:
        print_table(
            f"Prometheus serves {url}; Ctrl-C ends it", {**rows, "alerts": f"reelscale monitor alerts --url {url}"}
        )
        server.run_to_its_end(process)


@monitor.command()
def alerts(
    url: Annotated[str, typer.Option("--url", help="of a Prometheus that has Reelscale's rules")] = (
        f"http://127.0.0.1:{_PORT}"
    ),
    as_json: AsJson = False,
) -> None:
    """Show which alerts fire, the gravest first, each with what to do.

    Examples:

      reelscale monitor alerts

      reelscale monitor alerts --url http://prometheus:9090 --json
    """
    from cluster.monitor.prometheus.firing_alerts import watch

    state = watch(url)
    if as_json:
        print_json(asdict(state))
        return
    for alert in state.firing:
        rows = {"what": alert.description, "since": alert.since, "to do": alert.runbook}
        print_table(f"{alert.severity}: {alert.summary} ({alert.name})", rows)
    watched = f"{state.rules} rules watch {state.targets} processes, of which {state.answering} answer"
    if not state.firing:
        print(f"no alert fires: {watched}")
    elif not state.answering:
        print(visible(f"reelscale: {watched}"), file=sys.stderr)
