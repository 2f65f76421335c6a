"""Object stores behind one protocol: local folders, S3 buckets, and any file system of fsspec."""
