"""Speed, shown beside others in one run."""
