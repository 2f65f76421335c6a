"""Inspects a store: `verify` reads it again and names what is damaged; summary, contact sheet and HTML page."""
