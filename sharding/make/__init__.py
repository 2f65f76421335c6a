"""Makes shards: compares a corpus with its store (`prepare`), then runs one shard job after the other (`shard`)."""
