"""Raw corpus → shards in an object store."""
