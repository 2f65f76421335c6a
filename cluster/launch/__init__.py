"""Starting processes: which launcher, ranks on this machine, a Ray cluster."""
