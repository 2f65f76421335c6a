"""Decodes a source video: packets, frames, their times, sizes and colours, and damage that decoders conceal."""
