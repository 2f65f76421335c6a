"""The report: an HTML page about one or more runs."""
