"""Who runs what, where, and how to watch it: the command line, Ray jobs, launchers, the metrics endpoint."""
