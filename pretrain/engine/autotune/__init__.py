"""Autotuning of the compute path: the fastest one here, measured as a run begins, in a process of its own on a GPU."""
