"""Fonts for pictures and pages with names in any script."""
