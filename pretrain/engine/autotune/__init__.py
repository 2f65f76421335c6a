"""Which way of computing is the fastest here: measured as a run begins, in a process of its own on a GPU."""
