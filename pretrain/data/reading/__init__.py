"""The bytes of clips, read from a store and decoded."""
