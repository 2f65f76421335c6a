"""Commands handed to a Ray cluster, where they outlive the terminal; and what goes on there, or in a run's folder."""
