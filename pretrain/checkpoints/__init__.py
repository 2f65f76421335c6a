"""Checkpoints: written whole or not at all, here and in a store, by the newest attempt only."""
