"""The study: the R(2+1)D paper's claims tried on motion corpora, by the commands that users type."""
