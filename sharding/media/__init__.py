"""One source video, from its bytes to its stored segments; begin with `transcode`."""
