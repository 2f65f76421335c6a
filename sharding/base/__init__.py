"""The ground floor, which knows no video: errors, settings, text, files and processes."""
