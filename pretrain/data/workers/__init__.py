"""Processes that make batches of clips, and the pool that the trainer sees."""
