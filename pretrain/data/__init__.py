"""Shards to clips: order, reading, decoding, views, loading."""
