"""What a plan goes by, beside the recipe: machines, rates, faults and a price, each default with its source."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from sharding.base.settings import Seconds, Settings

Rate = Annotated[float, Field(ge=1e-6, le=1e9)]
Share = Annotated[float, Field(ge=0, lt=1)]
INTERRUPTIONS_PER_GPU_DAY = 419 / (54 * 16_384)


_LABELS = {
    "sample_seconds": "length of a sample",
    "network_latency_seconds": "network latency",
    "start_seconds": "to the first step",
    "reschedule_seconds": "until nodes are there again",
    "link_gb_per_second": "links inside a node",
    "store_gb_per_second": "a node's way to the store",
    "store_total_gb_per_second": "store in all",
    "shard_gb_per_second": "one shard",
    "checkpoint_copy_gb_per_second": "copying a checkpoint",
    "checkpoint_write_gb_per_second": "writing a checkpoint",
    "network_gb_per_second": "network between nodes",
    "interruptions_per_gpu_day": "interruptions",
    "preemptions_per_node_day": "preemptions",
    "price_per_gpu_hour": "price",
}


def label(name: str) -> str:
    """What a plan calls a setting."""
    return _LABELS.get(name, name.replace("_", " "))


def _of(unit: str, source: str) -> dict[str, Any]:
    """A field's `json_schema_extra`: its unit, and where its default comes from."""
    return {"unit": unit, "source": source}


class PlanSettings(Settings):
    """A cluster to plan for. What a measured file holds takes the place of a default, what is set that of both."""

    nodes: Annotated[
        int, Field(json_schema_extra=_of("nodes", "assumed"), ge=1, le=2**16, description="machines of the cluster")
    ] = 1
    gpus_per_node: Annotated[
        int,
        Field(json_schema_extra=_of("GPUs", "assumed"), ge=1, le=1024, description="GPUs of a machine, a rank each"),
    ] = 8
    gpu: Annotated[
        str,
        Field(
            json_schema_extra=_of("", "assumed"),
            description="the GPU's name, by whose data sheet a peak is taken: h200, h100, a100, …",
        ),
    ] = "H200"
    clips_per_second: Annotated[
        Rate | None,
        Field(
            json_schema_extra=_of("clips/s", ""),
            description="clips that a GPU trains in a second by itself; null: measured, else by mfu",
        ),
    ] = None
    mfu: Annotated[
        float,
        Field(
            json_schema_extra=_of("share", "assumed: R(2+1)D-34 by bf16 on one H200, 568 clips/s of 16 frames"),
            gt=0,
            le=1,
            description="share of the GPU's dense peak that the network alone takes, where no clips/s are known",
        ),
    ] = 0.26
    e2e: Annotated[
        float,
        Field(
            json_schema_extra=_of("share", "assumed: the goal of `make bench-train`"),
            gt=0,
            le=1,
            description="rate of training over that of its network alone; 1 where training itself was measured",
        ),
    ] = 0.95
    jitter: Annotated[
        Share,
        Field(
            json_schema_extra=_of("share", "assumed"),
            description="standard deviation of a rank's step, as a share of it; all wait for the slowest rank",
        ),
    ] = 0.01
    network_gb_per_second: Annotated[
        Rate,
        Field(
            json_schema_extra=_of("GB/s", "published: one 400 Gbit/s adapter; a DGX H200 has one a GPU"),
            description="what a node sends to other nodes, and receives from them at the same time",
        ),
    ] = 50.0
    network_latency_seconds: Annotated[
        float,
        Field(
            json_schema_extra=_of("seconds", "assumed"),
            ge=0,
            le=10,
            description="what each message between nodes takes beside its bytes",
        ),
    ] = 1e-5
    link_gb_per_second: Annotated[
        Rate,
        Field(
            json_schema_extra=_of("GB/s", "published: NVLink of an H100 or H200, 900 GB/s in both directions"),
            description="what a GPU sends to others of its node, and receives at the same time",
        ),
    ] = 450.0
    exchange: Annotated[
        Literal["auto", "ring", "tree"],
        Field(
            json_schema_extra=_of("", "assumed"),
            description="how gradients are summed over nodes; auto: the faster; a tree needs engine.zero=0",
        ),
    ] = "auto"
    overlap: Annotated[
        float,
        Field(
            json_schema_extra=_of("share", "assumed: after the CUDA graph of a step's last backward pass"),
            ge=0,
            le=1,
            description="share of the exchange that may hide behind the backward pass",
        ),
    ] = 0.0
    cores_per_node: Annotated[
        int,
        Field(
            json_schema_extra=_of("cores", "published: a DGX H200 has 2 × 56"),
            ge=1,
            le=2**16,
            description="CPU cores of a machine",
        ),
    ] = 112
    clips_per_core_second: Annotated[
        Rate,
        Field(
            json_schema_extra=_of("clips/s", "assumed: 16-frame clips of 170 × 128 pixels on one core; by frames"),
            description="clips that a core reads and decodes in a second",
        ),
    ] = 300.0
    store_gb_per_second: Annotated[
        Rate,
        Field(
            json_schema_extra=_of("GB/s", "assumed: a 100 Gbit/s adapter"), description="what a node reads of a store"
        ),
    ] = 12.5
    store_total_gb_per_second: Annotated[
        Rate | None,
        Field(
            json_schema_extra=_of("GB/s", "assumed: no limit beside the nodes' own"),
            description="what all nodes together read of a store; null: no limit",
        ),
    ] = None
    store_requests_per_second: Annotated[
        Rate | None,
        Field(
            json_schema_extra=_of("requests/s", ""),
            description="reads that a store answers in a second; null: 5,500 of s3://, no limit of a directory",
        ),
    ] = None
    shard_gb_per_second: Annotated[
        Rate | None,
        Field(
            json_schema_extra=_of("GB/s", "assumed: no limit beside the store's own"),
            description="what can be read of one shard by all ranks together; null: no limit",
        ),
    ] = None
    videos: Annotated[
        int | None,
        Field(
            json_schema_extra=_of("videos", ""),
            ge=1,
            le=10**12,
            description="videos of a store that is not there yet; null: the data set's that the recipe's name says",
        ),
    ] = None
    classes: Annotated[
        int | None,
        Field(
            json_schema_extra=_of("classes", ""),
            ge=1,
            le=10**6,
            description="classes of a store that is not there yet; null: the data set's that the recipe's name says",
        ),
    ] = None
    segments_per_video: Annotated[
        float,
        Field(
            json_schema_extra=_of("samples", "assumed: a video is one sample"),
            gt=0,
            le=10**6,
            description="samples that a video of a store that is not there yet gives",
        ),
    ] = 1.0
    sample_seconds: Annotated[
        Seconds | None,
        Field(
            json_schema_extra=_of("seconds", ""),
            description="length of a sample of a store that is not there yet; null: the data set's that the recipe's "
            "name says, else 10",
        ),
    ] = None
    frames_per_second: Annotated[
        float,
        Field(
            json_schema_extra=_of("frames/s", "assumed"),
            gt=0,
            le=1000,
            description="frames a second of a store that is not there yet",
        ),
    ] = 30.0
    bytes_per_frame: Annotated[
        float,
        Field(
            json_schema_extra=_of("bytes", "assumed: three real videos of 170 × 128 pixels had 144, 591 and 750"),
            gt=0,
            le=10**9,
            description="stored bytes a frame of a store that is not there yet",
        ),
    ] = 600.0
    shard_bytes: Annotated[
        float,
        Field(
            json_schema_extra=_of("bytes", "assumed"),
            gt=0,
            le=10**15,
            description="bytes of a shard of a store that is not there yet",
        ),
    ] = 256e6
    checkpoint_copy_gb_per_second: Annotated[
        Rate,
        Field(
            json_schema_extra=_of("GB/s", "assumed"),
            description="rate at which the state is gathered and copied to the host, while training waits",
        ),
    ] = 10.0
    checkpoint_write_gb_per_second: Annotated[
        Rate,
        Field(
            json_schema_extra=_of("GB/s", "assumed"),
            description="rate at which a checkpoint is written while training goes on",
        ),
    ] = 1.0
    interruptions_per_gpu_day: Annotated[
        float,
        Field(
            json_schema_extra=_of("a GPU and day", "published: Llama 3, 419 in 54 days of 16,384 GPUs"),
            ge=0,
            le=1000,
            description="unexpected interruptions of a run that a GPU accounts for in a day",
        ),
    ] = INTERRUPTIONS_PER_GPU_DAY
    preemptions_per_node_day: Annotated[
        float,
        Field(
            json_schema_extra=_of("a node and day", "assumed: nodes that are not taken away"),
            ge=0,
            le=1000,
            description="times a day that a node is taken away",
        ),
    ] = 0.0
    reschedule_seconds: Annotated[
        float,
        Field(
            json_schema_extra=_of("seconds", "assumed: a spare node stands ready"),
            ge=0,
            le=366 * 86400,
            description="from an interruption that was noticed until all nodes are there again",
        ),
    ] = 60.0
    start_seconds: Annotated[
        float,
        Field(
            json_schema_extra=_of("seconds", "assumed: seen on one H200, 45 to 70"),
            ge=0,
            le=86400,
            description="from the start of the ranks to the first step",
        ),
    ] = 70.0
    price_per_gpu_hour: Annotated[
        float,
        Field(
            json_schema_extra=_of("USD a GPU-hour", "assumed; set your own"),
            ge=0,
            le=10**6,
            description="price of a GPU for an hour, its share of the node included",
        ),
    ] = 4.0
