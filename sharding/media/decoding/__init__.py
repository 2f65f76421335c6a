"""Decoding a source video: frames, their times, sizes and colours, and damage that decoders hide."""
