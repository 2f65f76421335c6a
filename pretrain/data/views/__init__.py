"""Which frames and pixels of a sample a clip shows: pure."""
