"""What keeps a run sound: liveness, hangs, stop signals, losses that jump, stragglers."""
