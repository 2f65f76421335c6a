"""Commands of those who watch over runs and machines."""
