"""What one entry of a corpus says: its file, labels, split, and the roots it may lie under."""
