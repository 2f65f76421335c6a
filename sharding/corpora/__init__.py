"""Reads a corpus into videos for the plan; begin with `manifest`."""
