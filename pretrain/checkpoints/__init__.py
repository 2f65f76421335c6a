"""What a checkpoint's commit is made of: its manifest, its folder, the run's attempts, and its place in a store."""
