"""The ground floor: errors, settings, texts, processes and files; nothing here knows a video."""
