"""Pipelines: stages read from a file, kept in records, and run as processes."""
