"""Batches on the device: from planes to a network's input."""
