"""What people look at: an HTML page about one or more runs."""
