"""`reelscale shard` and `reelscale shards retry`: shards made of a corpus, or of what failed of it."""

import json
import sys
from contextlib import nullcontext
from typing import Annotated, Any

import typer

from cluster.commands.options import Address, AsJson, Detach, Media, Overrides, sent_to_cluster
from cluster.launch.process_pool import WorkerDied
from cluster.launch.signals import Interrupted, errors_as_interrupted, signals_postponed
from cluster.terminal.output import stdout_to_stderr
from cluster.terminal.progress import working
from cluster.terminal.tables import print_json, print_store
from sharding.base.exit_codes import FAILED, STOPPED
from sharding.base.printable import visible_lines


def shard(
    corpus: Annotated[
        str,
        typer.Argument(
            help="a folder of class folders, a csv, jsonl or parquet list, or Sports-1M, Kinetics, UCF101, HMDB51 lists"
        ),
    ],
    store: Annotated[str, typer.Argument(help="a directory or URL (s3://bucket/prefix) to put the shards in")],
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option("--config", help="settings (YAML)")] = None,
    media: Media = None,
    address: Address = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Shard a corpus of videos into a store. Run it again to go on after a stop, or when videos were added.

    A video that cannot be used is listed with its reason and never stops the rest. Ctrl-C and SIGTERM end with
    exit code 75 and keep the shards made so far.

    Examples:

      reelscale shard ~/videos ./store

      reelscale shard ~/videos s3://bucket/videos encode.short_edge=256 launcher=none

      reelscale shard list.csv ./store --media ~/videos segments.seconds=10 segments.per_video=3

      reelscale shard list.csv ./store labels_separator=';' encoding=cp1252

      reelscale shard sports-1m-dataset s3://bucket/sports1m --media s3://bucket/raw segments.seconds=10

      reelscale shard list.csv s3://bucket/videos --address head:6379 --detach

      reelscale shard ucfTrainTestlist ./ucf --media UCF-101 fold=2
    """
    if sent_to_cluster(address, detach, as_json):
        return
    from_media = [f"media={json.dumps(media)}"] if media else []
    _shard("run_sharding", corpus, store, config, [*from_media, *(overrides or [])], as_json=as_json)


def retry(
    store: Annotated[str, typer.Argument(help="a directory or URL that `reelscale shard` wrote")],
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option("--config", help="settings (YAML): workers, launcher, …")] = None,
    media: Media = None,
    address: Address = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Try the videos and segments that failed once more, into new shards; those that are there stay untouched.

    Examples:

      reelscale shards retry ./store

      reelscale shards retry s3://bucket/videos --media s3://bucket/mended workers=4
    """
    if sent_to_cluster(address, detach, as_json):
        return
    from_media = [f"media={json.dumps(media)}"] if media else []
    _shard("run_retry", store, config, [*from_media, *(overrides or [])], as_json=as_json)


def _shard(name: str, *arguments: Any, as_json: bool) -> None:
    try:
        with working("loading the encoder"), signals_postponed():
            from cluster.jobs import sharding

        with errors_as_interrupted(), stdout_to_stderr() if as_json else nullcontext():
            summary = getattr(sharding, name)(*arguments)
    except WorkerDied as error:
        remedy = "the same command goes on, with less memory where workers=1"
        print(visible_lines(f"reelscale: {error}; {remedy}"), file=sys.stderr)
        raise typer.Exit(FAILED) from None
    except Interrupted:
        print("reelscale: stopped; the shards made so far are kept, the same command goes on", file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    if as_json:
        print_json(summary)
    else:
        print_store(summary)
