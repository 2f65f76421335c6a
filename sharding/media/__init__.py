"""One video, from its bytes to its stored segments: `transcode` is the door."""
