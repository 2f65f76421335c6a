"""A corpus as it comes, read into a plan's videos: `manifest` is the door."""
