"""A corpus as it comes, read into a plan's videos: `sharding.manifest` is the door."""
