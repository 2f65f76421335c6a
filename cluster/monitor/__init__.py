"""Watching a run: the Prometheus endpoint."""
