"""Prometheus metrics of training, declared here and counted where things happen; `cluster.monitor` serves them.

A figure that a rank has of itself, it serves; one of the whole run is served by rank 0 alone.
"""

from __future__ import annotations

import math
import time

from pretrain.data.reading.damage import DAMAGE_KINDS
from sharding.telemetry.declare import ServedBy, counter, gauge, histogram

_EACH: ServedBy = "every rank"
_FIRST: ServedBy = "rank 0"
_STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_WAIT_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_CHECKPOINT_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)
_DECODE_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)

# Where a run is.
STEP = gauge("reelscale_train_step", "Optimizer steps taken.", _EACH)
STEPS = gauge("reelscale_train_steps", "Optimizer steps of the whole run.", _FIRST)
SAMPLES = gauge("reelscale_train_samples", "Samples trained on so far, over all ranks.", _FIRST)
EPOCH = gauge("reelscale_train_epoch", "Samples trained on so far, in epochs of `schedule.epoch_clips`.", _FIRST)
STARTED_TIME = gauge("reelscale_train_started_timestamp_seconds", "When this rank began to train.", _EACH)
LAST_STEP_TIME = gauge(
    "reelscale_train_last_step_timestamp_seconds", "When this rank had the figures of its last step.", _EACH
)
ATTEMPTS = gauge("reelscale_train_attempts", "How often the run was started, this time included.", _FIRST)
INTERRUPTIONS = gauge(
    "reelscale_train_interruptions", "Times that the run went on after it did not stop in order.", _FIRST
)
LOST_SECONDS = gauge(
    "reelscale_train_lost_seconds",
    "Time from checkpoints to where the run went on from them after interruptions.",
    _FIRST,
)

# What is learned.
LOSS = gauge("reelscale_train_loss", "Training loss, mean since the last log line.", _FIRST)
TOP1 = gauge("reelscale_train_top1_ratio", "Training clip top-1, mean since the last log line.", _FIRST)
LEARNING_RATE = gauge("reelscale_train_learning_rate", "Learning rate of the last step.", _FIRST)
GRADIENT_NORM = gauge("reelscale_train_gradient_norm", "Gradient norm of the last step, before clipping.", _FIRST)
LOSS_SCALE = gauge("reelscale_train_loss_scale", "Loss scale of the coming step; in fp16 alone.", _FIRST)
LOSS_SPIKES = counter("reelscale_loss_spikes_total", "Steps whose loss was far above those before them.", _FIRST)
SKIPPED_STEPS = counter(
    "reelscale_skipped_steps_total",
    "Steps that were left out: a loss or a gradient was not finite (`not_finite`), in fp16 perhaps only because of the "
    "loss scale (`overflow`), or a rank had no clips (`no_clips`).",
    _FIRST,
    "reason",
    ["not_finite", "overflow", "no_clips"],
)
ROLLBACKS = counter("reelscale_rollbacks_total", "Times that the run was set back to its last checkpoint.", _FIRST)
VALIDATION_CLIP1 = gauge("reelscale_validation_clip1_ratio", "Clip@1 of the last validation.", _FIRST)
VALIDATION_TIME = gauge(
    "reelscale_validation_last_timestamp_seconds", "When this process had the figures of its last validation.", _FIRST
)

# How fast.
CLIP_RATE = gauge(
    "reelscale_train_clips_per_second",
    "Clips trained a second over all ranks, between the last two log lines; it sinks while no step is taken. What was "
    "reached over any time is `rate(reelscale_train_samples[5m])`.",
    _FIRST,
)
MFU = gauge(
    "reelscale_train_mfu_ratio",
    "Model FLOPs of the last log line's steps, of what the GPUs could do; absent where no peak of the device is known.",
    _FIRST,
    ["device"],
)
STEP_SECONDS = histogram(
    "reelscale_train_step_seconds",
    "Time from one step of this rank to the next, without validation and without standing still for checkpoints.",
    _EACH,
    _STEP_BUCKETS,
)
DATA_WAIT_SECONDS = histogram(
    "reelscale_train_data_wait_seconds", "Time that this rank waited for a step's clips.", _EACH, _WAIT_BUCKETS
)
COMPUTE_SECONDS = histogram(
    "reelscale_train_compute_seconds",
    "Time of this rank's device in a step without waiting for other ranks: forward, backward, optimizer. Not measured "
    "where a forward pass waits for them, too (ZeRO 3, normalisation over ranks).",
    _EACH,
    _STEP_BUCKETS,
)
EXCHANGE_SECONDS = histogram(
    "reelscale_train_exchange_seconds",
    "Time from this rank's backward pass until gradients are summed over the ranks, waiting for them included. Not "
    "measured for a single rank, nor where compute is not.",
    _EACH,
    _WAIT_BUCKETS,
)
DATA_WAIT = gauge("reelscale_train_data_wait_ratio", "Share of time this rank waited for data.", _EACH)
SAVING = gauge("reelscale_train_saving_ratio", "Share of time that training stood still for checkpoints.", _EACH)
STRAGGLER_RANK = gauge(
    "reelscale_train_straggler_rank",
    "The rank that took far longer than the others by the last log line, the slowest of them; absent where none did.",
    _FIRST,
)
SLOW_RANKS = counter(
    "reelscale_slow_ranks_total", "Ranks that took far longer than the others, counted at each log line.", _FIRST
)
MEMORY = gauge(
    "reelscale_train_memory_bytes", "Memory of this rank: of its GPU at most, on a CPU of its process.", _EACH
)

# What is kept.
CHECKPOINTS = counter("reelscale_checkpoints_total", "Checkpoints committed.", _FIRST)
CHECKPOINT_FAILURES = counter("reelscale_checkpoint_failures_total", "Checkpoints that could not be saved.", _FIRST)
CHECKPOINT_SECONDS = histogram(
    "reelscale_checkpoint_seconds",
    "Time a checkpoint took to commit, beside training, and to upload.",
    _FIRST,
    _CHECKPOINT_BUCKETS,
)
CHECKPOINT_TIME = gauge(
    "reelscale_checkpoint_last_timestamp_seconds",
    "When the last checkpoint was saved, also one of before that the run goes on from.",
    _FIRST,
)

# What is read.
CLIPS_DECODED = counter("reelscale_clips_decoded_total", "Training clips decoded for this rank.", _EACH)
CLIPS_LOOPED = counter("reelscale_clips_looped_total", "Training clips of videos shorter than a clip.", _EACH)
DECODE_SECONDS = histogram(
    "reelscale_decode_seconds", "Time a worker of this rank took to read and decode a clip.", _EACH, _DECODE_BUCKETS
)
BYTES_READ = counter("reelscale_read_bytes_total", "Bytes this rank's workers read from stores.", _EACH)
READ_RETRIES = counter("reelscale_read_retries_total", "Reads of stores that were tried again.", _EACH)
DAMAGED_SAMPLES = counter(
    "reelscale_damaged_samples_total",
    "Samples of training and validation left out because they are damaged, each once a process.",
    _EACH,
)
DECODE_ERRORS = counter(
    "reelscale_decode_errors_total",
    "Damaged samples, shards and tars that this rank met, each once, by what is wrong: something is missing, has "
    "another size, record or checksum, does not decode, or gives pictures of another size.",
    _EACH,
    "kind",
    DAMAGE_KINDS,
)


class Throughput:
    """Clips a second of the last interval that was measured; over a longer time as long as no step is taken."""

    def __init__(self) -> None:
        self._clips, self._seconds, self._last = math.nan, 1.0, 0.0

    def step(self) -> None:
        """Note that a step was taken."""
        self._last = time.monotonic()

    def measured(self, clips: float, seconds: float) -> None:
        """Note the clips of an interval that ends now."""
        self._clips, self._seconds, self._last = clips, seconds, time.monotonic()

    def rate(self) -> float:
        """Clips a second; NaN before the first interval."""
        return self._clips / max(self._seconds, time.monotonic() - self._last)


THROUGHPUT = Throughput()
CLIP_RATE.set_function(THROUGHPUT.rate)
