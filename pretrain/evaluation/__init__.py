"""Evaluation of a trained network on a store's videos."""
