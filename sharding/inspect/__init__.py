"""Looking at a store: verification, summary, contact sheet and page."""
