"""Weights into and out of Reelscale: published files, other trainers' checkpoints, exports."""
