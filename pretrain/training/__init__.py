"""The trainer, and what a run begins with, goes on from and calls after each step."""
