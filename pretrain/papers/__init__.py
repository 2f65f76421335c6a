"""What the papers measured, and whether a run may be held against it."""
