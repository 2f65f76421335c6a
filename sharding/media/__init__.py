"""One video, from its bytes to its clips: `sharding.video` is the door."""
