"""A source video before it is decoded: its bytes, what makes it bad, which stretches become segments."""
