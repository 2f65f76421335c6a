"""Object stores: local folders, S3 buckets and any fsspec file system behind one protocol."""
