"""Benchmark: what reading a range of an object costs, of CPU and of time, on a real S3 server and on a local disk.

python -m tests.benchmarks.store [--quick] [--out FILE]

A row a way and size: CPU of this process (user and system) and wall, in milliseconds a range, the median of rounds in
which all ways take turns. The server runs on this machine, so wall is short of a network's and is shared with it; its
CPU is not counted. Ways: s3fs and botocore (boto3's lower half) as a user calls them, urllib3 and http.client on a
presigned URL, ours, and the store in a directory.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import s3fs
import urllib3

from pretrain.planning.measured import MeasuredFigure
from sharding.storage.s3 import S3Store
from sharding.storage.store import open_store
from tests.support.s3 import running_s3

OBJECT = 64 * 2**20
SIZES = {"20 kB": 20_000, "8 MB": 8 * 2**20, "16 MB": 16 * 2**20}
READS = {"20 kB": 100, "8 MB": 5, "16 MB": 3}  # of a way in a round

Read = Callable[[int, int], bytes]


@contextmanager
def ways(data: bytes) -> Iterator[dict[str, Read]]:
    """Functions that read bytes [start, end) of the same object."""
    with running_s3() as server, tempfile.TemporaryDirectory(prefix="reelscale-store-") as folder:
        os.environ.update(server.environment)
        store, local = open_store(f"s3://{server.bucket}/bench"), open_store(folder)
        assert isinstance(store, S3Store)
        for place in (store, local):
            place.put("object", data)
        endpoint = server.environment["AWS_ENDPOINT_URL"]
        fs = s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True, use_listings_cache=False)
        path = f"{server.bucket}/bench/object"
        url = urlsplit(fs.url(path, expires=3600))
        target = f"{url.path}?{url.query}"
        client = botocore.session.get_session().create_client("s3")
        pool = urllib3.HTTPConnectionPool(str(url.hostname), url.port)
        connection = http.client.HTTPConnection(str(url.hostname), url.port)

        def by_botocore(start: int, end: int) -> bytes:
            extent = f"bytes={start}-{end - 1}"
            return client.get_object(Bucket=server.bucket, Key="bench/object", Range=extent)["Body"].read()

        def by_urllib3(start: int, end: int) -> bytes:
            return pool.urlopen("GET", target, headers={"Range": f"bytes={start}-{end - 1}"}).data

        def by_http_client(start: int, end: int) -> bytes:
            connection.request("GET", target, headers={"Range": f"bytes={start}-{end - 1}"})
            return connection.getresponse().read()

        yield {
            "s3fs": lambda start, end: fs.cat_file(path, start=start, end=end),
            "botocore": by_botocore,
            "urllib3, presigned": by_urllib3,
            "http.client, presigned": by_http_client,
            "ours": lambda start, end: store.get_range("object", start, end),
            "directory": lambda start, end: local.get_range("object", start, end),
        }


def seconds() -> tuple[float, float]:
    """(CPU of this process, wall)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, time.perf_counter()


def measured(name: str, size: int, reads: int, rounds: int, readers: dict[str, Read], data: bytes) -> dict[str, Any]:
    """Median milliseconds of CPU and of wall a read, by way; each way's bytes compared once."""
    figures: dict[str, list[tuple[float, float]]] = {way: [] for way in readers}
    starts = [number * 7_919_000 % (len(data) - size) for number in range(reads)]
    for read in readers.values():
        assert read(starts[-1], starts[-1] + size) == data[starts[-1] : starts[-1] + size]
    for _ in range(rounds):
        for way, read in readers.items():
            cpu, wall = seconds()
            for start in starts:
                read(start, start + size)
            cpu_then, wall_then = seconds()
            figures[way].append((1000 * (cpu_then - cpu) / reads, 1000 * (wall_then - wall) / reads))
    medians = {way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in figures.items()}
    return {"range": name, "bytes": size, "cpu_ms_wall_ms": medians}


def measured_figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `reelscale plan --measured` takes of the rows: CPU seconds of ours for a range as short as a clip's."""
    milliseconds = next(row["cpu_ms_wall_ms"]["ours"][0] for row in rows if row["bytes"] == SIZES["20 kB"])
    return [MeasuredFigure(figure="range_cpu_seconds", value=milliseconds / 1e3, remote=True).tree()]


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as text."""
    lines = [f"{'':<24}" + "".join(f"{row['range'] + ': CPU':>14}{'wall, ms':>10}" for row in rows)]
    for way in rows[0]["cpu_ms_wall_ms"]:
        lines.append(f"{way:<24}" + "".join("{:>14.3f}{:>10.3f}".format(*row["cpu_ms_wall_ms"][way]) for row in rows))
    return "\n".join(lines)


def main() -> None:
    """Measure every way at every size, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--out", type=Path, default=Path("bench/store.json"))
    args = parser.parse_args()
    data = os.urandom(OBJECT)
    with ways(data) as readers:
        rows = [
            measured(name, size, READS[name], 3 if args.quick else 11, readers, data) for name, size in SIZES.items()
        ]
    print(table(rows))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"measured": measured_figures(rows), "rows": rows}, indent=1) + "\n")
    print(f"figures: {args.out}")


if __name__ == "__main__":
    main()
