"""Shards to a trained network: models, data, engine, trainer, checkpoints, evaluation, report."""
