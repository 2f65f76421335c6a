"""Prometheus metrics of training, declared where they are counted; `cluster.monitor` serves them."""

from prometheus_client import Counter, Gauge

CLIPS_DECODED = Counter("reelscale_clips_decoded_total", "Training clips decoded for this rank.")
CLIPS_LOOPED = Counter("reelscale_clips_looped_total", "Training clips of videos shorter than a clip.")
DECODE_SECONDS = Counter("reelscale_decode_seconds_total", "Time this rank's workers took to read and decode.")
DATA_WAIT_SECONDS = Counter("reelscale_train_data_wait_seconds_total", "Time this rank waited for data.")
BYTES_READ = Counter("reelscale_read_bytes_total", "Bytes this rank's workers read from stores.")
READ_RETRIES = Counter("reelscale_read_retries_total", "Reads of stores that were tried again.")
DAMAGED_SAMPLES = Counter("reelscale_damaged_samples_total", "Training samples left out because they are damaged.")
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
