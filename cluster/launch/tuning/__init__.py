"""Ray Tune: trials of a sweep as processes in its actors, stopped in order, gone on with where they were."""
