"""Pages that people look at: the HTML kit, and fonts for names in any script."""
