"""Many fine-tunings by one command: over the splits of a corpus, and over values of settings."""
