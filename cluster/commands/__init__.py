"""The commands of `reelscale`, a file a group: arguments in, a job called, its result printed."""
