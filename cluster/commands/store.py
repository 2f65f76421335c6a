"""`reelscale shards verify`, `shards inspect` and `bench-loader`: a store looked at, read again, and timed."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.options import AsJson, Overrides
from cluster.terminal.output import stdout_to_stderr
from cluster.terminal.progress import working
from cluster.terminal.tables import print_json, print_store, print_table, print_verification
from sharding.base.exit_codes import DONE, FAILED


def verify(
    store: Annotated[str, typer.Argument(help="a directory or URL that `reelscale shard` wrote")],
    decode: Annotated[str, typer.Option(help="samples to decode: none, sample (one in fifty), all")] = "sample",
    workers: Annotated[int, typer.Option(min=0, max=1024, help="shards read at a time; 0: one a core")] = 0,
    as_json: AsJson = False,
) -> None:
    """Read everything in a store again: counts, digests, tables, pictures. Names every damaged shard and sample.

    Exit codes: 0 all is as it was written, 1 something is damaged.

    Examples:

      reelscale shards verify ./store

      reelscale shards verify s3://bucket/videos --decode all --json
    """
    with working("opening the store"):
        from cluster.jobs.verification import run_verification

    figures = run_verification(store, decode, workers)
    if as_json:
        print_json(figures)
    else:
        print_verification(figures)
    raise typer.Exit(FAILED if figures["damages"] else DONE)


def inspect_store(
    store: Annotated[str, typer.Argument(help="a directory or URL that `reelscale shard` wrote")],
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for a contact sheet (PNG) and a page (HTML)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a store holds: samples, splits, classes, lengths, and the videos that failed with their reasons.

    Examples:

      reelscale shards inspect ./store --json

      reelscale shards inspect s3://bucket/videos --out ./look
    """
    with working("reading the store's records"):
        from cluster.jobs.inspection import run_inspection

        figures = run_inspection(store, out)
    if as_json:
        print_json(figures)
    else:
        print_store(figures)


def bench_loader(
    store: Annotated[str, typer.Argument(help="a directory or URL that `reelscale shard` wrote")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast this machine reads and decodes a store's training clips, and what a clip costs.

    KEY=VALUE are a recipe's data settings (data.clip, data.loader, data.order, data.mix), its lanes, lane_batch and
    seed; and seconds=10, or clips=N, that each of two outputs is measured for: planes (uint8), and the network's input
    made of them on the CPU.

    Examples:

      reelscale bench-loader ./store

      reelscale bench-loader s3://bucket/videos data.clip.frames=32 data.loader.workers=8 seconds=30 --json
    """
    with working("opening the store"):
        from cluster.jobs.loader_bench import figure_lines, run_loader_bench

    with stdout_to_stderr() if as_json else nullcontext():
        figures = run_loader_bench(store, overrides or [])
    if as_json:
        print_json(figures)
    else:
        print_table(f"bench-loader {figures['store']}", figure_lines(figures))
