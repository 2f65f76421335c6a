"""A source video before it is decoded: reading its bytes, judging it, planning its segments."""
