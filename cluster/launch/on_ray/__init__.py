"""Ray: a connection to it, and ranks that it places on its nodes."""
