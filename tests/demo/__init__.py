"""The demo's raw corpora: labelled clips of motion, cut from the footage in tests/data."""
