"""Prometheus metrics of training, declared where they are counted; `cluster.monitor` serves them.

A gauge is NaN until it is measured.
"""

import math

from prometheus_client import Counter, Gauge

CLIPS_DECODED = Counter("reelscale_clips_decoded_total", "Training clips decoded for this rank.")
CLIPS_LOOPED = Counter("reelscale_clips_looped_total", "Training clips of videos shorter than a clip.")
DECODE_SECONDS = Counter("reelscale_decode_seconds_total", "Time this rank's workers took to read and decode.")
DATA_WAIT_SECONDS = Counter("reelscale_train_data_wait_seconds_total", "Time this rank waited for data.")
BYTES_READ = Counter("reelscale_read_bytes_total", "Bytes this rank's workers read from stores.")
READ_RETRIES = Counter("reelscale_read_retries_total", "Reads of stores that were tried again.")
DAMAGED_SAMPLES = Counter(
    "reelscale_damaged_samples_total", "Samples of training and validation left out because they are damaged."
)
SAMPLES = Gauge("reelscale_train_samples", "Samples trained on so far, over all ranks.")
STEP = Gauge("reelscale_train_step", "Optimizer steps taken.")
STEPS = Gauge("reelscale_train_steps", "Optimizer steps of the whole run.")
LOSS = Gauge("reelscale_train_loss", "Training loss, mean since the last log line.")
TOP1 = Gauge("reelscale_train_top1_ratio", "Training clip top-1, mean since the last log line.")
LEARNING_RATE = Gauge("reelscale_train_learning_rate", "Learning rate of the last step.")
GRADIENT_NORM = Gauge("reelscale_train_gradient_norm", "Gradient norm of the last step.")
CLIP_RATE = Gauge("reelscale_train_clips_per_second", "Clips trained a second, over all ranks.")
DATA_WAIT = Gauge("reelscale_train_data_wait_ratio", "Share of time this rank waited for data.")
VALIDATION_CLIP1 = Gauge("reelscale_validation_clip1_ratio", "Clip@1 of the last validation.")
SKIPPED_STEPS = Counter("reelscale_skipped_steps_total", "Steps left out because a gradient was not finite.")
CHECKPOINTS = Counter("reelscale_checkpoints_total", "Checkpoints committed.")
CHECKPOINT_SECONDS = Gauge("reelscale_checkpoint_seconds", "Time the last checkpoint took to commit.")
CHECKPOINT_FAILURES = Counter("reelscale_checkpoint_failures_total", "Checkpoints that could not be saved.")
MFU = Gauge(  # no sample where no device has a peak to be judged by
    "reelscale_train_mfu_ratio", "Model FLOPs of the last log line's steps, of what the GPUs could do.", ["device"]
)
SAVING = Gauge("reelscale_train_saving_ratio", "Share of time that training stood still for checkpoints.")
MEMORY = Gauge("reelscale_train_memory_bytes", "Memory of this rank: of its GPU at most, on a CPU of its process.")
LOSS_SPIKES = Counter("reelscale_loss_spikes_total", "Steps whose loss was far above those before them.")
ROLLBACKS = Counter("reelscale_rollbacks_total", "Times that the run was set back to its last checkpoint.")
INTERRUPTIONS = Gauge("reelscale_train_interruptions", "Times that the run went on after it did not stop in order.")
LOST_SECONDS = Gauge(
    "reelscale_train_lost_seconds", "Time from checkpoints to where the run went on from them after interruptions."
)
SLOW_RANKS = Counter("reelscale_slow_ranks_total", "Log lines at which a rank took far longer than the others.")

for _gauge in (
    SAMPLES, STEP, STEPS, LOSS, TOP1, LEARNING_RATE, GRADIENT_NORM, CLIP_RATE, DATA_WAIT, VALIDATION_CLIP1,
    CHECKPOINT_SECONDS, SAVING, MEMORY, INTERRUPTIONS, LOST_SECONDS,
):  # fmt: skip
    _gauge.set(math.nan)  # prometheus_client's own first value, 0, would pass for a figure
