"""What every corpus format shares: rows, labels, splits, and the roots that files lie below."""
