"""Prometheus metrics of training, declared where they are counted; `cluster.monitor` serves them."""

from prometheus_client import Counter, Gauge

CLIPS_DECODED = Counter("reelscale_clips_decoded_total", "Training clips decoded by this rank.")
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
