"""From a raw corpus to shards in an object store."""
