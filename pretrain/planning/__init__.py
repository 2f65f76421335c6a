"""What a training run on a cluster takes, worked out before it begins: time, data rates, interruptions, cost."""
